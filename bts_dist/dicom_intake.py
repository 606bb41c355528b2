"""A patient as one series of single-frame DICOM slices (PS3.3 C.7.6.2): FLAIR alone."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.processing import apply_rescale

from bts_dist.axial import AxialView
from bts_dist.dicom_mask import derived_mask
from bts_dist.grey_levels import to_grey_levels
from bts_dist.study import check_sequences
from shards.encode import Pixels
from shards.errors import InputError

SUFFIXES = (".dcm", ".ima")

_NEEDED = (
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
)
_SHARED = {"ImageOrientationPatient": 1e-3, "PixelSpacing": 1e-3, "Rows": 0, "Columns": 0}
"""What all slices of a volume must agree on, and how closely."""

_UNEVEN = 0.02  # Of the spacing: what positions may be off, rounded as some scanners write them.
_LEAST_MM = 0.01
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
_MAGIC = 128, b"DICM"
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
)


@dataclass(frozen=True)
class DicomStudy:
    """A series whose slices lie at even distances."""

    patient: str
    files: tuple[Path, ...]
    """In the order of their positions along the slices' normal."""
    view: AxialView
    """Of the volume with axes slice, row, column."""
    voxel_mm3: float | None
    study_uid: str
    notes: tuple[str, ...]
    format: str = "dicom"

    @property
    def slices_shape(self) -> tuple[int, int, int]:
        return self.view.slices_shape

    def read(self) -> Pixels:
        """As of ``Study``; rescale slope and intercept are applied slice by slice."""
        volume = to_grey_levels(np.stack([_pixels(path) for path in self.files]), self.patient)
        flair_NHW = self.view.slices(volume).astype(np.uint8, copy=False)
        image_NHWC = np.repeat(flair_NHW[..., None], 3, axis=3)
        check_sequences(image_NHWC, self.patient)
        return image_NHWC

    def write(self, mask_NHW: NDArray[np.bool_], folder: Path) -> None:
        """``<name>_mask.dcm`` for each file: 8-bit grey of 0 and 255, under identifiers that follow from its own."""
        for path, mask in zip(self.files, self.view.volume(mask_NHW), strict=True):
            stem = path.stem if path.suffix.lower() in SUFFIXES else path.name
            derived_mask(_header(path), mask.astype(bool)).save_as(
                folder / f"{stem}_mask.dcm", enforce_file_format=True
            )


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its suffix or its content; the index file of a medium is not."""
    if path.name.upper() == "DICOMDIR":
        return False
    if path.suffix.lower() in SUFFIXES:
        return True
    offset, magic = _MAGIC
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(len(magic)) == magic


def open_dicom(patient: str, paths: Sequence[Path]) -> DicomStudy:
    """The series in ``paths``, by its headers.

    Raises:
        InputError: there are several series, a file is no grey single-frame MR slice, or the slices do not make a
            volume; it names series or files.
    """
    headers = {path: _header(path) for path in sorted(paths)}
    _check_one_series(headers)
    _check_one_frame(headers)
    for path, header in headers.items():
        _check_slice(path, header)
    first_path, first = next(iter(headers.items()))
    for path, header in headers.items():
        for name, tolerance in _SHARED.items():
            own, others = (np.atleast_1d(np.asarray(h[name].value, float)) for h in (header, first))
            if own.shape != others.shape or np.abs(own - others).max() > tolerance:
                raise InputError(
                    f"{path} has {name} {own.round(4).tolist()}, {first_path.name} {others.round(4).tolist()}; give "
                    "slices of one volume"
                )
    affine, files, known = _grid(headers)
    view = AxialView(affine, (len(files), int(first.Rows), int(first.Columns)))
    notes = view.notes() if known else ("the distance of slices is not known",)
    return DicomStudy(
        patient, files, view, view.voxel_mm3 if known else None, str(first.get("StudyInstanceUID", "")), notes
    )


def check_studies_differ(studies: Sequence[DicomStudy]) -> None:
    """Raise ``InputError`` for two series of one study, which are different sequences more likely than patients."""
    seen: dict[str, DicomStudy] = {}
    for study in studies:
        other = seen.setdefault(study.study_uid, study)
        if study.study_uid and other is not study:
            raise InputError(
                f"{other.patient} and {study.patient} are series of one study ({study.study_uid}); give the folder of "
                "the FLAIR series alone"
            )


def _header(path: Path) -> Dataset:
    try:
        return pydicom.dcmread(path, stop_before_pixels=True)
    except (InvalidDicomError, *_DAMAGE) as error:
        raise InputError(f"{path} is damaged or no DICOM file ({error}); restore it") from error


def _check_one_series(headers: dict[Path, Dataset]) -> None:
    series = Counter(str(header.get("SeriesInstanceUID", "none")) for header in headers.values())
    if len(series) == 1:
        return
    said = {
        str(h.get("SeriesInstanceUID", "none")): str(h.get("SeriesDescription", "")) for h in headers.values()
    }
    listed = "; ".join(f"{said[uid] or 'without description'}, {n} files, {uid}" for uid, n in series.items())
    raise InputError(
        f"{next(iter(headers)).parent} holds {len(series)} series ({listed}); give a folder with the FLAIR series alone"
    )


def _check_one_frame(headers: dict[Path, Dataset]) -> None:
    frames = {str(header.get("FrameOfReferenceUID")): path for path, header in headers.items()}
    if len(frames) > 1:
        first, second, *_ = frames.values()
        raise InputError(
            f"{first} and {second.name} have different frames of reference, so their positions do not compare; give "
            "slices of one volume"
        )


def _check_slice(path: Path, header: Dataset) -> None:
    wrong = None
    if int(header.get("SamplesPerPixel", 1)) != 1:
        wrong = f"has {header.SamplesPerPixel} channels ({header.get('PhotometricInterpretation')}), like a screenshot"
    elif header.get("Modality") != "MR":
        wrong = f"is of modality {header.get('Modality')}, not MR"
    elif int(header.get("NumberOfFrames", 1)) != 1:
        wrong = f"holds {header.NumberOfFrames} frames; convert it to single-frame slices"
    elif header.get("PhotometricInterpretation") != "MONOCHROME2":
        wrong = f"is {header.get('PhotometricInterpretation')}, not MONOCHROME2"
    else:
        absent = [name for name in _NEEDED if not header.get(name)]
        wrong = f"has no {absent[0]}" if absent else None
    if wrong is not None:
        raise InputError(f"{path} {wrong}; give the slices of one FLAIR series")


def _grid(headers: dict[Path, Dataset]) -> tuple[NDArray[np.float64], tuple[Path, ...], bool]:
    """The affine of voxel (slice, row, column), the files in slice order, and whether their distance is known."""
    first = next(iter(headers.values()))
    along_row, along_column = np.asarray(first.ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(along_row, along_column)
    position = {path: np.asarray(h.ImagePositionPatient, float) for path, h in headers.items()}
    files = tuple(sorted(headers, key=lambda path: float(position[path] @ normal)))
    origin = position[files[0]]
    thickness = first.get("SpacingBetweenSlices") or first.get("SliceThickness")
    if len(files) > 1:
        step = (position[files[-1]] - origin) / (len(files) - 1)
        _check_even(files, position, step)
    else:
        step = normal * float(thickness or 1)
    row_mm, column_mm = (float(v) for v in first.PixelSpacing)
    affine = np.eye(4)
    affine[:3, :3] = _LPS_TO_RAS @ np.stack([step, along_column * row_mm, along_row * column_mm], axis=1)
    affine[:3, 3] = _LPS_TO_RAS @ origin
    return affine, files, len(files) > 1 or thickness is not None


def _check_even(
    files: Sequence[Path], position: dict[Path, NDArray[np.float64]], step: NDArray[np.float64]
) -> None:
    """Refuse slices at one place, gaps, and slices that are shifted against each other."""
    gaps = np.array([np.linalg.norm(position[b] - position[a]) for a, b in pairwise(files)])
    usual = float(np.median(gaps))
    if gaps.min() < _LEAST_MM:
        a, b = list(pairwise(files))[int(gaps.argmin())]
        raise InputError(f"{a} and {b.name} lie at one place; give one volume, of one echo and one time")
    for gap, (a, b) in zip(gaps, pairwise(files), strict=True):
        if abs(gap - usual) > max(_LEAST_MM, _UNEVEN * usual):
            raise InputError(
                f"{a} and {b.name} lie {gap:.3f} mm apart, most slices {usual:.3f} mm; restore what is missing between "
                "them, or give one evenly spaced volume"
            )
    for number, path in enumerate(files):
        off = float(np.linalg.norm(position[path] - position[files[0]] - number * step))
        if off > max(_LEAST_MM, _UNEVEN * usual):
            raise InputError(f"{path} lies {off:.3f} mm off the line of the other slices; give one volume")


def _pixels(path: Path) -> NDArray[np.generic]:
    """A slice's values after the rescale that its header asks for."""
    try:
        dataset = pydicom.dcmread(path)
        values: NDArray[np.generic] = dataset.pixel_array
        if "RescaleSlope" in dataset:
            values = apply_rescale(values, dataset)
    except (InvalidDicomError, *_DAMAGE) as error:
        raise InputError(
            f"{path}: its pixels cannot be decoded ({error}); restore the file, or store it uncompressed"
        ) from error
    return values
