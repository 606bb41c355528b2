import io
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from shards.config import StoreConfig
from shards.layout import find_patients
from shards.source import read_volume
from shards.store import open_store
from shards.verify import (
    PatientScan,
    SourceReport,
    head_figures,
    head_mask,
    join_scans,
    scan_patient,
    verify_source,
)

A, B, C = "TCGA_CS_0001_19960909", "TCGA_DU_0002_19970101", "TCGA_HT_0003_19980101"
PRE, FLAIR, POST = 0, 1, 2


def tiff(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "TIFF")
    return out.getvalue()


def a_volume(seed: int, num: int = 4, side: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Dim air around a bright square head with a tumour in the slices between the first and the last."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 6, (num, side, side, 3), np.uint8)
    image[:, 3:-3, 3:-3] += rng.integers(60, 120, (num, side - 6, side - 6, 3), np.uint8)
    mask = np.zeros((num, side, side), np.uint8)
    mask[1:-1, 4:6, 4:7] = 255
    return image, mask


def write(root: Path, folder: str, image: np.ndarray, mask: np.ndarray) -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for n, (slice_, outline) in enumerate(zip(image, mask, strict=True), start=1):
        (root / folder / f"{folder}_{n}.tif").write_bytes(tiff(slice_))
        (root / folder / f"{folder}_{n}_mask.tif").write_bytes(tiff(outline))


def scan_only(root: Path) -> PatientScan:
    store = open_store(str(root))
    (patient,), _ = find_patients(store)
    return scan_patient(store, patient)


def verify(root: Path, workers: int = 1) -> SourceReport:
    return verify_source(str(root), StoreConfig(), workers)


def test_a_clean_patient_has_its_figures_and_no_problem(tmp_path: Path) -> None:
    image, mask = a_volume(0)
    write(tmp_path, A, image, mask)
    scan = scan_only(tmp_path)
    assert scan.problems == ()
    assert (scan.patient, scan.folder, scan.institution) == ("TCGA_CS_0001", A, "CS")
    assert (scan.num_slices, scan.shape, scan.missing) == (4, (12, 12), ())
    assert scan.tumour_pixels == (0, 6, 6, 0)
    head = image[:, 3:-3, 3:-3].reshape(-1, 3)
    np.testing.assert_allclose(scan.mean, head.mean(axis=0))
    np.testing.assert_allclose(scan.std, head.std(axis=0))
    store = open_store(str(tmp_path))
    assert scan.digest == read_volume(store, find_patients(store)[0][0]).digest


def test_every_problem_of_one_patient_shows_at_once(tmp_path: Path) -> None:
    image, mask = a_volume(0, num=12)
    image[6] = 7
    image[10] = 7
    image[9] = image[8]
    write(tmp_path, A, image, mask)

    def put(name: str, data: bytes) -> None:
        (tmp_path / A / f"{A}_{name}.tif").write_bytes(data)

    put("1", tiff(image[0])[:-20])
    put("2", tiff(image[1][..., 0]))
    put("3_mask", tiff(mask[2] // 2))
    put("4_mask", tiff(mask[3][:-1]))
    put("5", tiff(image[4][:-2]))
    put("6_mask", b"")
    put("11_mask", tiff(mask[10] * 0))
    found = {(p.severity, p.file.removeprefix(f"{A}/{A}_")): p.what for p in scan_only(tmp_path).problems}
    said = {
        ("error", "1.tif"): "is damaged or no TIFF",
        ("error", "2.tif"): "is a 1-channel 8-bit image",
        ("error", "3_mask.tif"): "is not binary: it holds 0, 127",
        ("error", "4_mask.tif"): "is 11×12 pixels, its image 12×12",
        ("error", "5.tif"): "is 10×12 pixels, other slices of the patient 12×12",
        ("error", "5_mask.tif"): "is 12×12 pixels, its image 10×12",
        ("error", "6_mask.tif"): "is damaged or no TIFF (0 bytes",
        ("error", "7.tif"): "is blank, yet its mask has 6 tumour pixels",
        ("warning", "10.tif"): f"is bit-identical to {A}/{A}_9.tif",
        ("warning", "11.tif"): "is blank",
    }
    assert found.keys() == said.keys()
    for key, words in said.items():
        assert words in found[key]


def test_a_patient_of_which_nothing_can_be_read_is_scanned_too(tmp_path: Path) -> None:
    write(tmp_path, A, *a_volume(0))
    for path in (tmp_path / A).iterdir():
        path.write_bytes(b"II*\0")
    scan = scan_only(tmp_path)
    assert len(scan.problems) == 8
    assert (scan.shape, scan.tumour_pixels, scan.mean, scan.std) == ((0, 0), (0,) * 4, (0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize(
    ("channels", "missing"), [([POST], ("post",)), ([PRE], ("pre",)), ([PRE, POST], ("pre", "post"))]
)
def test_flair_in_the_place_of_a_sequence_is_a_warning(
    tmp_path: Path, channels: list[int], missing: tuple[str, ...]
) -> None:
    image, mask = a_volume(0)
    for channel in channels:
        image[..., channel] = image[..., FLAIR]
    write(tmp_path, A, image, mask)
    scan = scan_only(tmp_path)
    assert scan.missing == missing
    assert [(p.severity, p.file) for p in scan.problems] == [("warning", f"{A}/")] * len(missing)
    assert all(f"has no {m} sequence" in p.what for m, p in zip(missing, scan.problems, strict=True))


def test_flair_in_some_slices_only_is_no_missing_sequence(tmp_path: Path) -> None:
    image, mask = a_volume(0)
    image[:-1, ..., POST] = image[:-1, ..., FLAIR]
    write(tmp_path, A, image, mask)
    assert scan_only(tmp_path).missing == ()


@pytest.mark.parametrize("channel", [PRE, FLAIR, POST])
def test_a_sequence_of_one_value_is_an_error(tmp_path: Path, channel: int) -> None:
    image, mask = a_volume(0)
    image[..., channel] = 9
    write(tmp_path, A, image, mask)
    (problem,) = scan_only(tmp_path).problems
    assert (problem.severity, problem.file) == ("error", f"{A}/")
    assert problem.what == f"has no {('pre', 'flair', 'post')[channel]} sequence: it is 9 everywhere"


def test_a_patient_without_tumour_is_a_warning(tmp_path: Path) -> None:
    image, mask = a_volume(0)
    write(tmp_path, A, image, mask * 0)
    (problem,) = scan_only(tmp_path).problems
    assert (problem.severity, problem.file) == ("warning", f"{A}/")
    assert "has no tumour" in problem.what


def test_images_shared_by_two_patients_are_one_error_a_pair(tmp_path: Path) -> None:
    image, mask = a_volume(0)
    other, _ = a_volume(1)
    other[1:] = image[1:]
    write(tmp_path, A, image, mask)
    write(tmp_path, B, other, mask)
    (problem,) = verify(tmp_path).errors
    assert (problem.patient, problem.file) == ("TCGA_DU_0002", f"{B}/{B}_2.tif")
    assert problem.what.startswith(f"is bit-identical to {A}/{A}_2.tif of another patient (2 more")


def test_blank_slices_of_two_patients_are_no_copies(tmp_path: Path) -> None:
    for seed, folder in enumerate((A, B)):
        image, mask = a_volume(seed)
        image[0] = 0
        write(tmp_path, folder, image, mask)
    assert verify(tmp_path).errors == ()


def test_the_patient_of_another_size_than_most_is_an_error(tmp_path: Path) -> None:
    for seed, (folder, side) in enumerate([(A, 14), (B, 12), (C, 12)]):
        write(tmp_path, folder, *a_volume(seed, side=side))
    (problem,) = verify(tmp_path).errors
    assert (problem.patient, problem.file) == ("TCGA_CS_0001", f"{A}/")
    assert problem.what == "has slices of 14×14 pixels, most patients 12×12"


def test_a_report_has_the_problems_of_names_files_and_patients_errors_first(tmp_path: Path) -> None:
    for seed, folder in enumerate((A, B)):
        write(tmp_path, folder, *a_volume(seed))
    (tmp_path / A / f"{A}_1.tif").unlink()
    (tmp_path / A / f"{A}_1_mask.tif").unlink()
    (tmp_path / B / f"{B}_4_mask.tif").unlink()
    (tmp_path / B / f"{B}_3.tif").write_bytes(b"")
    report = verify(tmp_path)
    head, *rows = report.table()
    assert head == ("severity", "patient", "file", "problem", "what to do")
    assert [row[:3] for row in rows] == [
        ("error", "TCGA_DU_0002", f"{B}/{B}_4.tif"),
        ("error", "TCGA_DU_0002", f"{B}/{B}_3.tif"),
        ("warning", "TCGA_CS_0001", f"{A}/"),
    ]
    assert all(all(row) for row in rows)
    assert len(report.errors) == 2
    assert len(report.warnings) == 1
    assert [p.folder for p in report.patients] == [s.folder for s in report.scans] == [A, B]


def test_two_processes_report_the_same_as_one(tmp_path: Path) -> None:
    for seed, folder in enumerate((C, A, B)):
        write(tmp_path, folder, *a_volume(seed))
    done: list[tuple[int, int]] = []
    parallel = verify_source(str(tmp_path), StoreConfig(), 2, lambda n, of: done.append((n, of)))
    assert parallel == verify(tmp_path)
    assert done == [(1, 3), (2, 3), (3, 3)]


def test_scans_made_anywhere_and_in_any_order_join_to_the_same_report(tmp_path: Path) -> None:
    for seed, folder in enumerate((A, B)):
        write(tmp_path, folder, *a_volume(seed))
    store = open_store(str(tmp_path))
    patients, problems = find_patients(store)
    scans = [pickle.loads(pickle.dumps(scan_patient(store, p))) for p in reversed(patients)]  # noqa: S301
    assert join_scans(patients, scans, problems) == verify(tmp_path)


def _other_mask(folder: Path) -> None:
    (folder / f"{A}_1_mask.tif").write_bytes((folder / f"{A}_2_mask.tif").read_bytes())


def _other_order(folder: Path) -> None:
    (folder / f"{A}_1.tif").rename(folder / "x")
    (folder / f"{A}_2.tif").rename(folder / f"{A}_1.tif")
    (folder / "x").rename(folder / f"{A}_2.tif")


def _one_slice_less(folder: Path) -> None:
    (folder / f"{A}_4.tif").unlink()
    (folder / f"{A}_4_mask.tif").unlink()


@pytest.mark.parametrize("change", [_other_mask, _other_order, _one_slice_less])
def test_the_fingerprint_is_of_the_content_and_not_of_the_place(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    for place in ("here", "there/kaggle_3m"):
        write(tmp_path / place, A, *a_volume(0))
    before = verify(tmp_path / "here").fingerprint
    assert verify(tmp_path / "there").fingerprint == before
    change(tmp_path / "here" / A)
    assert verify(tmp_path / "here").fingerprint != before


def test_the_fingerprint_tells_patients_names(tmp_path: Path) -> None:
    write(tmp_path, A, *a_volume(0))
    report = verify(tmp_path)
    (scan,) = report.scans
    renamed = join_scans(report.patients, [replace(scan, folder=B)], [])
    assert renamed.fingerprint != report.fingerprint


def test_the_head_is_told_from_air_that_is_not_black_before_contrast() -> None:
    image, _ = a_volume(0)
    image[..., PRE] = image[..., PRE] // 4 + 76
    expected = np.zeros((4, 12, 12), bool)
    expected[:, 3:-3, 3:-3] = True
    np.testing.assert_array_equal(head_mask(image), expected)


def test_dark_brain_beside_very_bright_fat_still_belongs_to_the_head() -> None:
    image = np.zeros((1, 20, 20, 3), np.uint8)
    image[:, 3:-3, 3:-3] = 230
    image[:, 6:-6, 6:-6] = 70
    assert head_mask(image)[:, 3:-3, 3:-3].all()


@given(arrays(np.uint8, st.tuples(st.just(2), st.integers(1, 4), st.integers(1, 4), st.just(3))))
def test_figures_are_numpys_over_the_head(image: np.ndarray) -> None:
    head = head_mask(image)
    mean, std = head_figures(image)
    for channel in range(3):
        values = image[..., channel][head].astype(np.float64)
        assert mean[channel] == pytest.approx(values.mean() if len(values) else 0)
        assert std[channel] == pytest.approx((values.std() if len(values) else 0) or 1)


@given(arrays(np.uint8, (1, 4, 4, 3), elements=st.integers(0, 127)))
def test_twice_the_brightness_is_the_same_head_and_twice_the_figures(image: np.ndarray) -> None:
    np.testing.assert_array_equal(head_mask(image * 2), head_mask(image))
    (mean, std), (doubled_mean, doubled_std) = head_figures(image), head_figures(image * 2)
    values = image[head_mask(image)]
    for channel in range(3):
        assert doubled_mean[channel] == pytest.approx(2 * mean[channel])
        if len(np.unique(values[:, channel])) > 1:
            assert doubled_std[channel] == pytest.approx(2 * std[channel])


LGG = Path(os.environ.get("BTS_LGG", "unset"))


@pytest.mark.skipif(not LGG.is_dir(), reason="BTS_LGG does not name the real data set's kaggle_3m folder")
def test_the_real_data_set_has_no_errors_and_its_heads_hold_the_tumours() -> None:
    report = verify(LGG, workers=2)
    assert report.errors == ()
    assert {p.patient for p in report.warnings} == {s.patient for s in report.scans if s.missing}
    store = open_store(str(LGG))
    for patient in report.patients[::20]:
        volume = read_volume(store, patient)
        head = head_mask(volume.image_NHWC)
        assert 0.15 < head.mean() < 0.65
        assert head[volume.mask_NHW > 0].mean() > 0.9
