"""NIfTI volumes are read upright, their masks lie where they lay, and unfit ones are named."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scans import affine_of, write_nifti

from bts_dist.axial import AxialView
from bts_dist.intake import find_studies
from bts_dist.nifti_intake import NiftiStudy, open_nifti
from shards.config import PhantomConfig
from shards.errors import InputError
from shards.phantom import render
from shards.verify import missing_sequences

HEAD, MASK = render(PhantomConfig(size=32, min_slices=12, max_slices=12), 0)


def laid(slices_NHW: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Axial slices as a volume that lies as the affine says."""
    shape = [0, 0, 0]
    probe = AxialView(affine, (2, 3, 5)).slices_shape
    for axis, length in enumerate((2, 3, 5)):
        shape[axis] = slices_NHW.shape[probe.index(length)]
    return AxialView(affine, (shape[0], shape[1], shape[2])).volume(slices_NHW)


def refused(path: Path, match: str) -> None:
    with pytest.raises(InputError, match=match):
        find_studies(str(path))[0].read()


@pytest.mark.parametrize("axes", ["LPS", "RAS", "PSR", "SLA", "IAL"])
@pytest.mark.parametrize("tilt_deg", [0, 17])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_volume_keeps_its_geometry(tmp_path: Path, axes: str, tilt_deg: float, suffix: str) -> None:
    affine = affine_of(axes, (0.9, 1.0, 1.1), tilt_deg)
    path = write_nifti(tmp_path / f"s01{suffix}", laid(HEAD[..., 1], affine), affine)
    (study,) = find_studies(str(path))
    image = study.read()
    assert np.array_equal(image, np.repeat(HEAD[..., 1:2], 3, axis=3))
    assert missing_sequences(image) == ("pre", "post")
    assert study.voxel_mm3 == pytest.approx(0.99)
    assert study.notes == ()
    study.write(MASK.astype(bool), tmp_path)
    given, mask = nib.load(path), nib.load(tmp_path / f"s01_mask{suffix}")
    assert mask.shape == given.shape
    assert mask.get_data_dtype() == np.uint8
    assert np.array_equal(mask.affine, given.affine)
    assert mask.header.get_zooms() == given.header.get_zooms()
    for name in ("qform_code", "sform_code", "xyzt_units", "quatern_b", "pixdim", "srow_x"):
        assert np.array_equal(mask.header[name], given.header[name])
    assert np.array_equal(np.asarray(mask.dataobj), laid(MASK, affine))


def test_the_same_mask_has_the_same_bytes_and_nothing_of_the_headers_extensions(tmp_path: Path) -> None:
    affine = affine_of("LPS", (1, 1, 1))
    image = nib.Nifti1Image(laid(HEAD[..., 1], affine).astype(np.int16), affine)
    image.header.set_slope_inter(2, 5)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Doe^Jane"))
    nib.save(image, tmp_path / "a.nii.gz")
    (study,) = find_studies(str(tmp_path / "a.nii.gz"))
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        study.write(MASK.astype(bool), tmp_path / name)
        found.append((tmp_path / name / "a_mask.nii.gz").read_bytes())
    assert found[0] == found[1]
    assert b"Doe" not in gzip.decompress(found[0])
    mask = nib.load(tmp_path / "one" / "a_mask.nii.gz")
    assert np.array_equal(np.unique(mask.get_fdata()), [0, 1])


@pytest.mark.parametrize(
    ("pre", "flair", "post"),
    [("t1", "flair", "t1ce"), ("pre", "FLAIR", "post"), ("t1n", "t2f", "t1c"), ("T1w", "Flair", "T1_post")],
)
def test_three_sequences_by_their_names(tmp_path: Path, pre: str, flair: str, post: str) -> None:
    affine = affine_of("RAS", (1, 1, 1))
    for channel, name in enumerate((pre, flair, post)):
        write_nifti(tmp_path / f"BraTS20_001_{name}.nii.gz", laid(HEAD[..., channel], affine), affine)
    write_nifti(tmp_path / "BraTS20_001_seg.nii.gz", laid(MASK, affine), affine)
    write_nifti(tmp_path / "BraTS20_001_t2.nii.gz", laid(MASK, affine), affine)
    (study,) = find_studies(str(tmp_path))
    assert np.array_equal(study.read(), HEAD)
    assert study.notes == ("passed over BraTS20_001_seg.nii.gz", "passed over BraTS20_001_t2.nii.gz")
    study.write(MASK.astype(bool), tmp_path)
    assert (tmp_path / f"BraTS20_001_{flair}_mask.nii.gz").is_file()


def test_each_sequence_has_its_own_grey_levels(tmp_path: Path) -> None:
    affine = affine_of("RAS", (1, 1, 1))
    write_nifti(tmp_path / "flair.nii", laid(HEAD[..., 1], affine) * 10.0, affine)
    write_nifti(tmp_path / "t1.nii", laid(HEAD[..., 0], affine) * 0.001, affine)
    image = find_studies(str(tmp_path))[0].read()
    assert image[..., 0].max() == image[..., 1].max() == 255
    assert missing_sequences(image) == ("post",)


@pytest.mark.parametrize(("unit", "mm3"), [("mm", 6.0), ("micron", 6e-9), ("meter", 6e9), ("unknown", 6.0)])
def test_the_voxels_volume_is_in_the_headers_unit(tmp_path: Path, unit: str, mm3: float) -> None:
    path = write_nifti(tmp_path / "a.nii", np.zeros((4, 4, 4), np.int16), affine_of("RAS", (1, 2, 3)), unit)
    study = open_nifti("a", [path])
    assert isinstance(study, NiftiStudy)
    assert study.voxel_mm3 == pytest.approx(mm3)
    assert len(study.notes) == 1  # oblong pixels


def test_a_volume_that_does_not_say_how_it_lies_is_noted(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", np.zeros((4, 4, 4), np.int16), np.eye(4))
    image = nib.load(path)
    image.header["sform_code"] = image.header["qform_code"] = 0
    image.header.extensions.clear()
    data = bytearray(path.read_bytes())
    data[252:256] = bytes(4)  # qform_code and sform_code (nifti1.h)
    path.write_bytes(data)
    assert "does not say how it lies" in open_nifti("a", [path]).notes[0]


def test_unfit_volumes_are_named(tmp_path: Path) -> None:
    affine, flair = affine_of("RAS", (1, 1, 1)), HEAD[..., 1]
    refused(
        write_nifti(tmp_path / "a.nii", np.stack([flair] * 2, axis=-1), affine),
        r"a\.nii is 4D \(12×32×32×2\)",
    )
    rgb = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    refused(write_nifti(tmp_path / "rgb.nii", rgb, affine), r"rgb\.nii holds 3 colour channels")
    broken = flair.astype(np.float32)
    broken[0, 0, :3] = np.nan
    refused(write_nifti(tmp_path / "nan.nii.gz", broken, affine), r"nan\.nii\.gz holds 3 values that are NaN")
    path = write_nifti(tmp_path / "cut.nii.gz", flair, affine)
    path.write_bytes(path.read_bytes()[:500])
    refused(path, r"cut\.nii\.gz is damaged")
    path.write_bytes(b"nothing")
    refused(path, r"cut\.nii\.gz is damaged or no NIfTI")


def test_which_file_is_flair_must_be_clear(tmp_path: Path) -> None:
    affine = affine_of("RAS", (1, 1, 1))
    for name in ("x_flair", "y_flair"):
        write_nifti(tmp_path / f"{name}.nii", HEAD[..., 1], affine)
    refused(tmp_path, r"x_flair\.nii and y_flair\.nii both say flair")
    (tmp_path / "x_flair.nii").rename(tmp_path / "x_t1.nii")
    (tmp_path / "y_flair.nii").rename(tmp_path / "y.nii")
    refused(tmp_path, r"has no FLAIR volume among x_t1\.nii, y\.nii")
    refused(tmp_path / "x_t1.nii", "has no FLAIR volume")
    assert find_studies(str(tmp_path / "y.nii"))[0].patient == "y"


def test_sequences_on_different_grids(tmp_path: Path) -> None:
    write_nifti(tmp_path / "flair.nii", HEAD[..., 1], affine_of("RAS", (1, 1, 1)))
    write_nifti(tmp_path / "t1.nii", HEAD[..., 0], affine_of("RAS", (1, 1, 1.2)))
    refused(tmp_path, r"t1\.nii .* and flair\.nii .* lie on different grids")
