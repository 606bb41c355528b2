"""Small NIfTI volumes and DICOM series, with the geometry that a test asks for."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

Array = NDArray[Any]


def affine_of(axes: str, zooms: tuple[float, float, float], tilt_deg: float = 0) -> Array:
    """An affine whose axes go where the letters say (as in ``LPS``), then turned about two axes."""
    columns = {
        "R": (1, 0, 0),
        "L": (-1, 0, 0),
        "A": (0, 1, 0),
        "P": (0, -1, 0),
        "S": (0, 0, 1),
        "I": (0, 0, -1),
    }
    a = np.radians(tilt_deg)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_x @ about_z @ np.array([columns[letter] for letter in axes], float).T * zooms
    affine[:3, 3] = (-12.5, 30.25, -7)
    return affine


def write_nifti(path: Path, volume: Array, affine: Array, unit: str = "mm") -> Path:
    image = nib.Nifti1Image(volume, affine)
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    return path


def write_series(
    folder: Path,
    slices: Array,
    *,
    tilt_deg: float = 0,
    spacing: float = 5.0,
    series: str = "1.2.3",
    **changes: Any,
) -> list[Path]:
    """Axial slices (N, H, W), from inferior to superior, as DICOM files in another order than they lie.

    ``changes`` are attributes of all of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    a = np.radians(tilt_deg)
    row, column = np.array([1.0, 0, 0]), np.array([0, np.cos(a), np.sin(a)])
    paths = []
    for number, pixels in enumerate(slices):
        data = Dataset()
        data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, f"{series}.{number + 1}"
        data.SeriesInstanceUID, data.StudyInstanceUID, data.FrameOfReferenceUID = series, "1.2", "1.2.9"
        data.Modality, data.SeriesDescription, data.InstanceNumber = "MR", "ax FLAIR", number + 1
        data.PatientName, data.PatientID = "Doe^Jane", "7"
        data.ImageOrientationPatient = [*row, *column]
        data.ImagePositionPatient = list(
            np.array([-90.0, -80, 10]) + number * spacing * np.cross(row, column)
        )
        data.PixelSpacing, data.SliceThickness = [0.8, 0.9], spacing
        data.Rows, data.Columns = pixels.shape
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        bits = pixels.dtype.itemsize * 8
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = bits, bits, bits - 1, 0
        data.add_new("PixelData", "OW" if bits == 16 else "OB", pixels.tobytes())
        for name, value in changes.items():
            setattr(data, name, value)
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        # Names that do not sort as the slices lie.
        path = folder / f"IM{(number * 7 + 3) % 100:02d}.dcm"
        data.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths
