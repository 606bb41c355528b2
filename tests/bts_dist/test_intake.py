"""What lies where a user points: one patient, or a folder of them; anything else is named."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scans import affine_of, write_nifti, write_series

from bts_dist.intake import find_studies
from shards.errors import InputError

SLICES = np.random.default_rng(0).integers(1, 200, (3, 32, 32)).astype(np.uint8)


def slices(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(SLICES, start=1):
        Image.fromarray(pixels).save(folder / f"s{number}.png")
    return folder


def refused(source: Path | str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        find_studies(str(source))


def test_patients_in_their_order_and_of_any_format(tmp_path: Path) -> None:
    slices(tmp_path / "p10")
    write_series(tmp_path / "p9", SLICES)
    (tmp_path / "p8").mkdir()
    write_nifti(tmp_path / "p8" / "x.nii", SLICES, affine_of("SPL", (1, 1, 1)))
    (tmp_path / "data.csv").write_text("a,b")
    (tmp_path / ".cache").mkdir()
    seen: list[tuple[int, int]] = []
    studies = find_studies(str(tmp_path), lambda done, total: seen.append((done, total)))
    assert [(s.patient, s.format) for s in studies] == [("p8", "nifti"), ("p9", "dicom"), ("p10", "slices")]
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_single_file(tmp_path: Path) -> None:
    folder = slices(tmp_path)
    (study,) = find_studies(str(folder / "s2.png"))
    assert (study.patient, study.slices_shape) == ("s2", (1, 32, 32))
    volume = write_nifti(tmp_path / "p.1.nii.gz", SLICES, affine_of("SPL", (1, 1, 1)))
    assert find_studies(str(volume))[0].patient == "p.1"


def test_what_is_no_input_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere: no such file or folder; give slices")
    refused("s3://bucket/scans", "s3://bucket/scans: input is read from a local folder")
    refused(tmp_path, "is empty")
    (tmp_path / "a.jpg").write_bytes(b"x")
    refused(tmp_path, r"holds no images \(found: a\.jpg\)")
    refused(tmp_path / "a.jpg", r"a\.jpg is none of slices")


def test_two_formats_in_one_folder(tmp_path: Path) -> None:
    write_nifti(slices(tmp_path) / "v.nii", SLICES, affine_of("SPL", (1, 1, 1)))
    refused(tmp_path, r"holds both nifti \(v\.nii\) and slices \(s\d\.png\)")


def test_images_beside_folders_of_images(tmp_path: Path) -> None:
    slices(tmp_path)
    slices(tmp_path / "p1")
    refused(tmp_path, r"holds both images \(s1\.png\) and folders of them \(p1/\)")


def test_a_patient_folder_without_images(tmp_path: Path) -> None:
    slices(tmp_path / "p1")
    (tmp_path / "p2" / "deeper").mkdir(parents=True)
    refused(tmp_path, r"p2 holds no images, unlike p1/ beside it")
    refused(tmp_path / "p2", r"p2 holds no images \(found: deeper\)")
