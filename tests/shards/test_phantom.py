import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import phantom
from shards.anatomy import FLAIR
from shards.config import PhantomConfig, StoreConfig
from shards.errors import InputError
from shards.layout import find_patients
from shards.phantom import SCANNERS, generate, render
from shards.source import read_volume
from shards.store import open_store
from shards.verify import head_figures, head_mask, verify_source

CONFIG = PhantomConfig(patients=8, size=48, min_slices=9, max_slices=11, missing=0.25, seed=3)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("phantom") / "kaggle_3m"
    generate(CONFIG, dest, workers=1)
    return dest


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_two_processes_write_the_same_bytes_as_one(made: Path, tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    generate(CONFIG, tmp_path / "again", lambda n, of: done.append((n, of)), workers=2)
    assert digests(tmp_path / "again") == digests(made)
    assert done == [(n, 8) for n in range(1, 9)]


def test_another_seed_gives_other_patients(made: Path, tmp_path: Path) -> None:
    generate(CONFIG.model_copy(update={"seed": 4, "patients": 2}), tmp_path / "other", workers=1)
    images = {d for name, d in digests(tmp_path / "other").items() if not name.endswith("_mask.tif")}
    assert images.isdisjoint(digests(made).values())


def test_a_patient_does_not_depend_on_how_many_there_are() -> None:
    fewer = CONFIG.model_copy(update={"patients": 2})
    for few, many in zip(render(fewer, 1), render(CONFIG, 1), strict=True):
        np.testing.assert_array_equal(few, many)


def test_the_source_check_finds_nothing_but_the_missing_sequences(made: Path) -> None:
    report = verify_source(str(made), StoreConfig(), workers=1)
    assert report.errors == ()
    assert sum(bool(s.missing) for s in report.scans) == 2
    assert len(report.warnings) == sum(len(s.missing) for s in report.scans)
    assert {s.institution for s in report.scans} == {s.institution for s in SCANNERS}
    assert report.scans[0].patient == "PHANTOM_AX_0001"
    assert report.scans[0].folder == "PHANTOM_AX_0001_20000101"
    for scan in report.scans:
        assert scan.shape == (48, 48)
        assert 9 <= scan.num_slices <= 11


def test_every_patient_has_a_tumour_over_slices_but_none_at_either_end(made: Path) -> None:
    for scan in verify_source(str(made), StoreConfig(), workers=1).scans:
        positive = [pixels > 0 for pixels in scan.tumour_pixels]
        assert any(positive)
        assert not positive[0]
        assert not positive[-1]


def test_tumours_are_flair_bright_yet_no_threshold_finds_them(made: Path) -> None:
    store = open_store(str(made))
    patients, _ = find_patients(store)
    brighter, flairs, tumours = [], [], []
    for patient in patients:
        volume = read_volume(store, patient)
        tumour = volume.mask_NHW > 0
        mean, std = head_figures(volume.image_NHWC)
        flair = (volume.image_NHWC[..., FLAIR] - mean[FLAIR]) / std[FLAIR]
        brighter.append(np.median(flair[tumour]) > np.median(flair[head_mask(volume.image_NHWC) & ~tumour]))
        flairs.append(flair.ravel())
        tumours.append(tumour.ravel())
    flair, tumour = np.concatenate(flairs), np.concatenate(tumours)
    dice = [
        2 * (tumour & (flair > t)).sum() / (tumour.sum() + (flair > t).sum()) for t in np.arange(-1, 4, 0.1)
    ]
    assert np.mean(brighter) > 0.8
    assert max(dice) < 0.5


def test_tumours_differ_widely_in_size() -> None:
    config = CONFIG.model_copy(update={"size": 32})
    sizes = [int(render(config, index)[1].sum()) for index in range(24)]
    assert np.percentile(sizes, 90) > 5 * np.percentile(sizes, 10)


@given(st.integers(0, 2**32), st.integers(0, 3), st.integers(3, 5))
@settings(max_examples=15, deadline=None)
def test_the_smallest_volumes_have_a_tumour_and_no_blank_slice(
    seed: int, index: int, num_slices: int
) -> None:
    image, mask = render(
        PhantomConfig(seed=seed, size=32, min_slices=num_slices, max_slices=num_slices), index
    )
    assert image.shape == (num_slices, 32, 32, 3)
    assert (image.dtype, mask.dtype) == (np.uint8, np.uint8)
    assert set(np.unique(mask)) == {0, 1}
    assert all(len(np.unique(slice_)) > 1 for slice_ in image)


@pytest.mark.parametrize(("missing", "lacking"), [(0.0, 0), (1.0, 3)])
def test_the_share_of_patients_without_a_sequence_is_kept(
    tmp_path: Path, missing: float, lacking: int
) -> None:
    config = PhantomConfig(patients=3, size=32, min_slices=3, max_slices=3, missing=missing)
    generate(config, tmp_path / "made", workers=1)
    scans = verify_source(str(tmp_path / "made"), StoreConfig(), workers=1).scans
    assert sum(bool(s.missing) for s in scans) == lacking


TINY = PhantomConfig(patients=1, size=32, min_slices=3, max_slices=3)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=rf"{tmp_path}.*not an empty folder; delete it or choose another"):
        generate(TINY, tmp_path, workers=1)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="file exists and is not an empty folder"):
        generate(TINY, tmp_path / "file", workers=1)
    with pytest.raises(InputError, match=r"file/made\.partial: cannot be created"):
        generate(TINY, tmp_path / "file" / "made", workers=1)


def test_an_empty_folder_is_filled_and_what_a_broken_run_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made.partial").mkdir()
    (tmp_path / "made.partial" / "stale.tif").write_text("x")
    generate(TINY, tmp_path / "made", workers=1)
    assert [p.name for p in tmp_path.iterdir()] == ["made"]
    assert [p.name for p in (tmp_path / "made").iterdir()] == ["PHANTOM_AX_0001_20000101"]


def test_a_broken_run_leaves_no_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(phantom, "_write_patient", full_disk)
    with pytest.raises(OSError, match="disk full"):
        generate(TINY, tmp_path / "made", workers=1)
    assert not (tmp_path / "made").exists()
