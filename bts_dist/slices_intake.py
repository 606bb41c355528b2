"""A patient as TIFF or PNG slices: named as Kaggle's in colour, or grey ones of FLAIR alone.

Colour stands for three sequences only where the names say so.  Any other colour picture is a screenshot, or one whose
channels nobody knows.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bts_dist.grey_levels import to_grey_levels
from bts_dist.study import INSIDE, check_sequences
from shards.encode import Pixels
from shards.errors import InputError
from shards.layout import shortened
from shards.source import Picture, decode_picture

FORMATS = ("TIFF", "PNG")
SUFFIXES = (".tif", ".tiff", ".png")
KINDS = {("RGB", 8): "colour", ("L", 8): "grey", ("I;16", 16): "grey", ("I;16B", 16): "grey"}
"""Pillow's mode and the bits of a channel."""

_NUMBERED = re.compile(r"(?P<prefix>.+)_(?P<number>\d{1,6})")
_KAGGLE = re.compile(r"[A-Za-z]+_[A-Za-z0-9]{2}_[A-Za-z0-9]+(_\d{8})?")

# Of the 88 patients of the Kaggle set, pixels are grey in every slice of the 4 who have FLAIR alone, and in no slice
# of another are more than 37 % within 4 levels of grey.  A viewer's window is grey but for a few coloured marks.
_BRIGHT, _NEARLY = 16, 4
_MOST_GREY = 0.6
_LONGEST = 1.5
# In the Kaggle set corners have at most 2 % of the patient's highest value; those of a page are white.
_CORNER, _LIGHT = 1 / 16, 0.75


@dataclass(frozen=True)
class SliceStudy:
    """Slices in order, of one size and kind."""

    patient: str
    files: tuple[Path, ...]
    slices_shape: tuple[int, int, int]
    notes: tuple[str, ...] = ()
    format: str = "slices"
    voxel_mm3: None = None
    """Pictures carry no spacing that could be trusted."""

    def read(self) -> Pixels:
        """As of ``Study``.  RGB files give the very pixels that packing puts into shards."""
        pixels = np.stack([_decode(path).pixels for path in self.files])
        if pixels.ndim == 3:
            pixels = np.repeat(to_grey_levels(pixels, self.patient)[..., None], 3, axis=3)
        image_NHWC = pixels.astype(np.uint8, copy=False)
        check_sequences(image_NHWC, self.patient)
        return image_NHWC

    def write(self, mask_NHW: NDArray[np.bool_], folder: Path) -> None:
        """An 8-bit grey file of 0 and 255 for each slice, called as Kaggle's masks: ``<name>_mask`` and its suffix."""
        for path, mask in zip(self.files, mask_NHW, strict=True):
            kind = "PNG" if path.suffix.lower() == ".png" else "TIFF"
            picture = Image.fromarray(mask.astype(np.uint8) * np.uint8(INSIDE))
            picture.save(folder / f"{path.stem}_mask{path.suffix}", kind)


def is_mask(path: Path) -> bool:
    """Whether a file is called as Kaggle's masks, which are no input."""
    return path.stem.lower().endswith("_mask")


def natural_order(path: Path) -> list[tuple[bool, int, str]]:
    """Key that sorts names as people count: slice 9 before slice 10."""
    parts = re.findall(r"\d+|\D+", path.name)
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def open_slices(patient: str, paths: Sequence[Path]) -> SliceStudy:
    """The slices of one patient, all of them looked at.

    Raises:
        InputError: a file is damaged or of another kind or size than the rest, belongs to another patient, or is a
            picture of a screen rather than of a head; it names the file (see ``docs/predict.md``).
    """
    files = tuple(sorted(paths, key=natural_order))
    named = _named_as_sequences(files)
    first = _decode(files[0])
    corners, brightest = [], 0.0
    for path in files:
        picture = _decode(path)
        _check_alike(path, picture, files[0], first)
        if picture.mode == "RGB":
            _check_colours(path, picture.pixels.astype(np.uint8, copy=False), named)
        corners.append(_corners(picture.pixels))
        brightest = max(brightest, float(picture.pixels.max()))
    height, width = first.pixels.shape[:2]
    if max(height, width) > _LONGEST * min(height, width):
        raise InputError(
            f"{files[0]} is {height}×{width} pixels, too long for an axial slice of a head: is it a screenshot? "
            "Give the slices themselves"
        )
    if np.median(corners) > _LIGHT * brightest:
        raise InputError(
            f"{files[0]} lies on a light ground, as a screenshot or a negative does, and a head in MRI on a dark one; "
            "give the slices themselves"
        )
    return SliceStudy(patient, files, (len(files), height, width), _gaps(files))


def _decode(path: Path) -> Picture:
    picture = decode_picture(str(path), path.read_bytes(), FORMATS)
    if (picture.mode, picture.bits) not in KINDS:
        raise InputError(
            f"{path} is a {picture.channels}-channel {picture.bits}-bit picture (mode {picture.mode}); save slices "
            "as 8- or 16-bit grey (FLAIR alone) or 8-bit RGB (pre-contrast, FLAIR, post-contrast), without palette or "
            "alpha"
        )
    return picture


def _check_alike(path: Path, picture: Picture, first_path: Path, first: Picture) -> None:
    if picture.pixels.shape[:2] != first.pixels.shape[:2]:
        sizes = ["×".join(map(str, p.pixels.shape[:2])) for p in (picture, first)]
        raise InputError(
            f"{path} is {sizes[0]} pixels, {first_path.name} {sizes[1]}; give slices of one patient, of one size"
        )
    if (picture.mode, picture.bits) != (first.mode, first.bits):
        raise InputError(
            f"{path} is a {KINDS[picture.mode, picture.bits]} picture of {picture.bits} bits, {first_path.name} a "
            f"{KINDS[first.mode, first.bits]} one of {first.bits}; save all slices of a patient alike"
        )


def _check_colours(path: Path, image_HWC: Pixels, named: bool) -> None:
    """Raise ``InputError`` where colour cannot mean three sequences."""
    spread_HW = np.ptp(image_HWC, axis=2)
    if not spread_HW.any():
        return  # FLAIR alone, as the Kaggle set saves it
    if not named:
        raise InputError(
            f"{path} is a colour picture, as a screenshot is, and its name does not say that the channels are "
            "sequences; give grey slices of FLAIR, or name slices of pre-contrast, FLAIR and post-contrast "
            "<folder>_<n>.tif in a <folder> for the patient"
        )
    bright_HW = image_HWC.max(axis=2) > _BRIGHT
    grey = float((spread_HW[bright_HW] <= _NEARLY).mean()) if bright_HW.mean() > 0.01 else 0.0
    if grey > _MOST_GREY:
        raise InputError(
            f"{path} is a grey picture with some colour in it ({grey:.0%} of what is not black has no colour), as a "
            "screenshot is; give the slices themselves: grey ones of FLAIR, or RGB of pre-contrast, FLAIR and "
            "post-contrast"
        )


def _corners(pixels: NDArray[np.generic]) -> float:
    """The median brightness of a picture's four corners, where an axial slice of a head shows air."""
    side = max(1, int(_CORNER * min(pixels.shape[:2])))
    ends = slice(None, side), slice(-side, None)
    return float(np.median([pixels[rows, columns] for rows in ends for columns in ends]))


def _named_as_sequences(files: Sequence[Path]) -> bool:
    """Whether files are called as the Kaggle set's, whose channels are three sequences.

    Raises:
        InputError: they are, but of several patients.
    """
    found = [_NUMBERED.fullmatch(path.stem) for path in files]
    prefixes = {
        path.resolve().parent.name if match is None else match["prefix"]
        for path, match in zip(files, found, strict=True)
    }
    kaggle = sorted(prefix for prefix in prefixes if _KAGGLE.fullmatch(prefix))
    if len(kaggle) > 1:
        raise InputError(
            f"{files[0].parent} holds slices of {len(kaggle)} patients, {kaggle[0]} and {kaggle[1]} among them; give "
            "each patient a folder"
        )
    if None in found or len(prefixes) > 1:
        return False
    return bool(kaggle) or prefixes == {files[0].resolve().parent.name}


def _gaps(files: Sequence[Path]) -> tuple[str, ...]:
    """A sentence about numbers that are missing between the first slice and the last."""
    found = [_NUMBERED.fullmatch(path.stem) for path in files]
    numbers = {int(match["number"]) for match in found if match is not None}
    if None in found or not numbers:
        return ()
    gaps = sorted(set(range(min(numbers), max(numbers) + 1)) - numbers)
    return (f"lacks slices {shortened(gaps)} of {min(numbers)} to {max(numbers)}",) if gaps else ()
