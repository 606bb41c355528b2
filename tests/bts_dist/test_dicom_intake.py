"""A DICOM series is put in order by positions, its masks lie on its slices, and what is no series is named."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from scans import write_series

from bts_dist.intake import find_studies
from shards.config import PhantomConfig
from shards.errors import InputError
from shards.phantom import render

HEAD, MASK = render(PhantomConfig(size=32, min_slices=12, max_slices=12), 0)
FLAIR = HEAD[..., 1]


def refused(folder: Path, match: str) -> None:
    with pytest.raises(InputError, match=match):
        find_studies(str(folder))[0].read()


def change(path: Path, **attributes: Any) -> None:
    data = pydicom.dcmread(path)
    for name, value in attributes.items():
        setattr(data, name, value)
    data.save_as(path)


@pytest.mark.parametrize("tilt_deg", [0, 15])
def test_masks_lie_where_the_slices_lie(tmp_path: Path, tilt_deg: float) -> None:
    paths = write_series(tmp_path / "in", FLAIR, tilt_deg=tilt_deg)
    (study,) = find_studies(str(tmp_path / "in"))
    assert np.array_equal(study.read(), np.repeat(FLAIR[..., None], 3, axis=3))
    assert study.voxel_mm3 == pytest.approx(0.8 * 0.9 * 5)
    assert study.notes == ()
    out = tmp_path / "out"
    out.mkdir()
    study.write(MASK.astype(bool), out)
    assert len(list(out.iterdir())) == len(paths)
    uids = set()
    for path, mask_HW in zip(paths, MASK, strict=True):
        given, mask = pydicom.dcmread(path), pydicom.dcmread(out / f"{path.stem}_mask.dcm")
        assert np.array_equal(mask.pixel_array, mask_HW * 255)
        assert (mask.PhotometricInterpretation, mask.BitsStored) == ("MONOCHROME2", 8)
        for name in (
            "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "FrameOfReferenceUID", "Rows",
            "Columns", "StudyInstanceUID", "PatientID", "PatientName",
        ):  # fmt: skip
            assert mask[name].value == given[name].value
        assert mask.SourceImageSequence[0].ReferencedSOPInstanceUID == given.SOPInstanceUID
        assert mask.file_meta.MediaStorageSOPInstanceUID == mask.SOPInstanceUID
        assert pydicom.uid.UID(mask.SOPInstanceUID).is_valid
        uids |= {mask.SOPInstanceUID, mask.SeriesInstanceUID}
    assert len(uids) == len(paths) + 1  # an instance each, and one new series
    assert not uids & {pydicom.dcmread(p).SOPInstanceUID for p in paths}


def test_the_same_mask_has_the_same_bytes(tmp_path: Path) -> None:
    write_series(tmp_path / "in", FLAIR)
    (study,) = find_studies(str(tmp_path / "in"))
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        study.write(MASK.astype(bool), tmp_path / name)
        found.append({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()})
    assert found[0] == found[1]


def test_files_without_a_suffix_are_known_by_their_content(tmp_path: Path) -> None:
    for path in write_series(tmp_path, FLAIR):
        path.rename(path.with_name(f"1.2.{path.stem[2:]}"))
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "notes.txt").write_text("by hand")
    (study,) = find_studies(str(tmp_path))
    assert len(study.files) == 12
    out = tmp_path / "out"
    out.mkdir()
    study.write(MASK.astype(bool), out)
    assert len(list(out.iterdir())) == 12


def test_each_slices_own_rescale_is_applied(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "a", FLAIR.astype(np.uint16) * 4)
    plain = find_studies(str(tmp_path / "a"))[0].read()
    for number, path in enumerate(paths, start=1):
        data = pydicom.dcmread(path)
        data.PixelData = (
            (data.pixel_array // 4 * (12 // number if 12 % number == 0 else 1)).astype("<u2").tobytes()
        )
        data.RescaleSlope, data.RescaleIntercept = number if 12 % number == 0 else 12, 7
        data.save_as(path)
    assert np.array_equal(find_studies(str(tmp_path / "a"))[0].read(), plain)


def test_several_series_are_named(tmp_path: Path) -> None:
    write_series(tmp_path / "p", FLAIR[:3])
    late = write_series(tmp_path / "q", FLAIR[:2], series="1.2.4", SeriesDescription="ax T1")
    refused(tmp_path, "p and q are series of one study")
    for path in late:
        path.rename(tmp_path / "p" / f"t1-{path.name}")
    refused(tmp_path / "p", r"holds 2 series \(ax FLAIR, 3 files, 1\.2\.3; ax T1, 2 files, 1\.2\.4\)")


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (
            {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"},
            r"has 3 channels \(RGB\), like a screenshot",
        ),
        ({"Modality": "CT"}, "is of modality CT, not MR"),
        ({"NumberOfFrames": 4}, "holds 4 frames"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "is MONOCHROME1"),
        ({"ImagePositionPatient": None}, "has no ImagePositionPatient"),
        ({"PixelSpacing": [0.8, 0.8]}, r"has PixelSpacing \[0\.8, 0\.8\]|PixelSpacing \[0\.8, 0\.9\]"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0.9, 0.4359]}, "ImageOrientationPatient"),
        ({"FrameOfReferenceUID": "1.9"}, "different frames of reference"),
        ({"ImagePositionPatient": [-90, -80, 18]}, r"lie \d+\.\d+ mm apart, most slices 5\.000 mm"),
        ({"ImagePositionPatient": [-90, -80, 20]}, "lie at one place"),
        ({"ImagePositionPatient": [-89, -80, 15]}, r"lies \d\.\d+ mm off the line|mm apart"),
    ],
)
def test_a_slice_that_does_not_fit_is_named(tmp_path: Path, attributes: dict[str, Any], message: str) -> None:
    paths = write_series(tmp_path, FLAIR[:6])
    change(paths[1], **attributes)
    refused(tmp_path, message)


def test_a_missing_slice_is_noticed(tmp_path: Path) -> None:
    paths = write_series(tmp_path, FLAIR)
    paths[5].unlink()
    refused(tmp_path, rf"{paths[4].name} and {paths[6].name} lie 10\.000 mm apart, most slices 5\.000 mm")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    paths = write_series(tmp_path, FLAIR)
    data = paths[4].read_bytes()
    paths[4].write_bytes(data[:-500])
    refused(tmp_path, rf"{paths[4].name}: its pixels cannot be decoded")
    paths[4].write_bytes(b"nothing")
    refused(tmp_path, rf"{paths[4].name} is damaged or no DICOM")


def test_one_slice_alone_has_a_volume_only_if_its_thickness_is_known(tmp_path: Path) -> None:
    (path,) = write_series(tmp_path, FLAIR[5:6])
    assert find_studies(str(tmp_path))[0].voxel_mm3 == pytest.approx(3.6)
    change(path, SliceThickness=None)
    (study,) = find_studies(str(path))
    assert study.voxel_mm3 is None
    assert study.notes == ("the distance of slices is not known",)
