"""A patient as NIfTI volumes: FLAIR alone, or with the T1-weighted sequences before and after contrast.

The format is NIfTI-1 (https://nifti.nimh.nih.gov/nifti-1) or NIfTI-2, in one file.
"""

import gzip
import re
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from bts_dist.axial import AxialView
from bts_dist.grey_levels import to_grey_levels
from bts_dist.study import check_sequences
from shards.encode import Pixels
from shards.errors import InputError
from shards.verify import SEQUENCES

SUFFIXES = (".nii", ".nii.gz")

WORDS = {
    "flair": ("flair", "t2f"),
    "post": ("post", "t1ce", "t1gd", "t1c", "gd", "ce"),
    "pre": ("pre", "t1", "t1n", "t1w"),
}
"""Words of a file's name that say its sequence; the first sequence with one of them counts."""

_MASK_WORDS = {"mask", "seg"}
_MILLIMETRES = {1: 1000.0, 2: 1.0, 3: 0.001}
"""Of the units of space that a header can name; one that names none means millimetres."""
_SPACE = 7  # The bits of xyzt_units that are about space.
_DAMAGE = (ImageFileError, OSError, EOFError, ValueError, zlib.error)


@dataclass(frozen=True)
class NiftiStudy:
    """Volumes on one grid."""

    patient: str
    sequences: Mapping[str, Path]
    """``flair``, and ``pre`` and ``post`` where there are any."""
    view: AxialView
    """FLAIR's grid in millimetres."""
    notes: tuple[str, ...]
    format: str = "nifti"

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(self.sequences.values())

    @property
    def slices_shape(self) -> tuple[int, int, int]:
        return self.view.slices_shape

    @property
    def voxel_mm3(self) -> float:
        return self.view.voxel_mm3

    def read(self) -> Pixels:
        """As of ``Study``; each sequence has its own grey levels."""
        levels = {name: to_grey_levels(_values(path), str(path)) for name, path in self.sequences.items()}
        volumes = [levels.get(name, levels["flair"]) for name in SEQUENCES]
        image_NHWC = np.stack([self.view.slices(volume) for volume in volumes], axis=-1)
        check_sequences(image_NHWC.astype(np.uint8, copy=False), self.patient)
        return image_NHWC.astype(np.uint8, copy=False)

    def write(self, mask_NHW: NDArray[np.bool_], folder: Path) -> None:
        """``<FLAIR's name>_mask.nii`` or ``.nii.gz``: uint8 of 0 and 1, with the grid of FLAIR's own header."""
        path = self.sequences["flair"]
        flair = _load(path)
        header = flair.header.copy()
        header.set_data_dtype(np.uint8)
        header.set_slope_inter(1, 0)
        header["cal_min"], header["cal_max"] = 0, 1
        header["descrip"] = b"tumour mask by bts-dist"
        header.extensions.clear()  # They may hold anything, and it is about another image.
        mask = self.view.volume(mask_NHW).astype(np.uint8)
        stem, suffix = split_name(path)
        data = type(flair)(mask, flair.affine, header).to_bytes()
        # Without the time that gzip would put in: the same mask has the same bytes.
        packed = gzip.compress(data, mtime=0) if suffix.lower().endswith(".gz") else data
        (folder / f"{stem}_mask{suffix}").write_bytes(packed)


def split_name(path: Path) -> tuple[str, str]:
    """A file's name without and with nothing but its suffix."""
    suffix = next(s for s in sorted(SUFFIXES, key=len, reverse=True) if path.name.lower().endswith(s))
    return path.name[: -len(suffix)], path.name[-len(suffix) :]


def open_nifti(patient: str, paths: Sequence[Path]) -> NiftiStudy:
    """The volumes of one patient, by their headers.

    A file on its own is FLAIR, whatever its name, unless that says another sequence.

    Raises:
        InputError: no file or several can be FLAIR (or another sequence), one is no 3D image, or they lie on
            different grids; it names the files.
    """
    sequences, passed = _by_sequence(paths)
    flair = sequences["flair"]
    image = _load(flair)
    _check_3d(image, flair)
    affine = np.asarray(image.affine, np.float64)
    try:
        unit = _MILLIMETRES.get(int(image.header["xyzt_units"]) & _SPACE, 1.0)
        view = AxialView(np.diag([unit, unit, unit, 1]) @ affine, _shape(image))
    except InputError as error:
        raise InputError(f"{flair}: {error}") from error
    for path in sequences.values():
        other = _load(path)
        _check_3d(other, path)
        if _shape(other) != _shape(image) or not np.allclose(other.affine, affine, atol=1e-2):
            raise InputError(
                f"{path} ({_sides(other)}) and {flair.name} ({_sides(image)}) lie on different grids; resample the "
                "sequences of a patient to FLAIR's"
            )
    notes = [f"passed over {path.name}" for path in passed]
    if int(image.header["qform_code"]) == int(image.header["sform_code"]) == 0:
        notes.append(f"{flair.name} does not say how it lies; its axes are taken as NIfTI's old default")
    return NiftiStudy(patient, sequences, view, (*notes, *view.notes()))


def _by_sequence(paths: Sequence[Path]) -> tuple[dict[str, Path], list[Path]]:
    """Which file is which sequence, and those that are passed over."""
    candidates: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(paths):
        candidates[_sequence(path)].append(path)
    if not candidates["flair"] and len(candidates["other"]) == len(paths) == 1:
        candidates["flair"] = candidates.pop("other")
    names = ", ".join(path.name for path in sorted(paths))
    for sequence in SEQUENCES:
        if len(candidates[sequence]) > 1:
            first, second = (path.name for path in candidates[sequence][:2])
            raise InputError(
                f"{paths[0].parent}: {first} and {second} both say {sequence}; give each patient a folder with one "
                "file a sequence"
            )
    if not candidates["flair"]:
        raise InputError(
            f"{paths[0].parent} has no FLAIR volume among {names}; its name must have one of the words "
            f"{', '.join(WORDS['flair'])}"
        )
    return {name: candidates[name][0] for name in SEQUENCES if candidates[name]}, candidates["other"]


def _sequence(path: Path) -> str:
    words = set(re.split(r"[^a-z0-9]+", split_name(path)[0].lower()))
    if words & _MASK_WORDS:
        return "other"
    return next((name for name, own in WORDS.items() if words & set(own)), "other")


def _load(path: Path) -> Any:
    try:
        image = nib.load(path)
    except _DAMAGE as error:
        raise InputError(f"{path} is damaged or no NIfTI ({error}); restore it") from error
    return image


def _check_3d(image: Any, path: Path) -> None:
    dtype = image.get_data_dtype()
    if dtype.fields is not None:
        raise InputError(
            f"{path} holds {len(dtype.fields)} colour channels a voxel; export one sequence as grey levels"
        )
    if len(image.shape) != 3:
        raise InputError(
            f"{path} is {len(image.shape)}D ({_sides(image)}); give one volume of three dimensions, such as one of its "
            "time points"
        )
    if min(image.shape) < 1:
        raise InputError(f"{path} is empty ({_sides(image)}); export it again")


def _values(path: Path) -> NDArray[np.generic]:
    try:
        values: NDArray[np.generic] = np.asanyarray(_load(path).dataobj)
    except _DAMAGE as error:
        raise InputError(f"{path} is damaged ({error}); restore it") from error
    return values


def _shape(image: Any) -> tuple[int, int, int]:
    i, j, k = (int(n) for n in image.shape)
    return i, j, k


def _sides(image: Any) -> str:
    return "×".join(str(n) for n in image.shape)
