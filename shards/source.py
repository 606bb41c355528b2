"""The pixels of one patient of a source: what its files must hold, and what is wrong with those that do not.

An image is 8-bit RGB (pre-contrast, FLAIR, post-contrast), its mask 8-bit grey.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from shards.errors import InputError
from shards.layout import PatientFiles, shortened
from shards.store import MissingObject, ObjectStore

Pixels = NDArray[np.uint8]

_BITS_PER_SAMPLE, _SAMPLES_PER_PIXEL = 258, 277  # TIFF 6.0, section 8
_PNG_BIT_DEPTH = 24  # Offset of the byte: signature, length, IHDR, width, height (ISO/IEC 15948, 11.2.2)
# What Pillow was seen to raise for files with random bytes changed.
_DAMAGE = (OSError, ValueError, TypeError, OverflowError, SyntaxError, Image.DecompressionBombError)
_READERS = 8  # Threads that hide an object store's latency; a patient is some 50 small files.


@dataclass(frozen=True)
class Volume:
    """One patient's slices."""

    image_NHWC: Pixels
    mask_NHW: Pixels
    """0 and 1."""
    digest: str
    """sha256 over the files' names and bytes, in order."""


@dataclass(frozen=True)
class Contents:
    """What can be read of one patient, by slice number; a file that cannot is left out and has a fault."""

    images: dict[int, Pixels]
    """uint8 (H, W, 3)."""
    masks: dict[int, Pixels]
    """uint8 (H, W), 0 and 1."""
    faults: tuple["FileError", ...]
    digest: str


class FileError(InputError):
    """A file of the source that cannot be used."""

    def __init__(self, key: str, what: str, remedy: str) -> None:
        super().__init__(key, what, remedy)
        self.key = key
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.key} {self.what}; {self.remedy}"


def read_volume(store: ObjectStore, patient: PatientFiles) -> Volume:
    """Read one patient's slices and masks.

    Raises:
        FileError: a file is damaged, of another kind than the layout says, or of another size than the rest.
    """
    contents = read_contents(store, patient)
    if contents.faults:
        raise contents.faults[0]
    return Volume(
        np.stack(list(contents.images.values())), np.stack(list(contents.masks.values())), contents.digest
    )


def read_contents(store: ObjectStore, patient: PatientFiles) -> Contents:
    """Read what can be read of one patient, and say what is wrong with the rest."""
    data = _fetch(store, [key for files in patient.slices for key in (files.image, files.mask)])
    images: dict[int, Pixels] = {}
    masks: dict[int, Pixels] = {}
    faults: list[FileError] = []
    digest = hashlib.sha256()
    for files in patient.slices:
        for key, decode, into in ((files.image, decode_image, images), (files.mask, decode_mask, masks)):
            if key not in data:
                faults.append(FileError(key, "vanished after it was listed", "restore it and run again"))
                continue
            digest.update(f"{key.rpartition('/')[2]}\0{len(data[key])}\0".encode())
            digest.update(data[key])
            try:
                into[files.number] = decode(key, data[key])
            except FileError as fault:
                faults.append(fault)
    return Contents(images, masks, (*faults, *_size_faults(patient, images, masks)), digest.hexdigest())


def decode_image(key: str, data: bytes) -> Pixels:
    """Decode an image file to uint8 (H, W, 3); raises ``FileError`` for any other kind."""
    return _decode(key, data, "RGB", "save it as 8-bit RGB TIFF: pre-contrast, FLAIR, post-contrast")


def decode_mask(key: str, data: bytes) -> Pixels:
    """Decode a mask file of 0 and 255, or 0 and 1, to uint8 (H, W) of 0 and 1; else raises ``FileError``."""
    mask_HW = _decode(key, data, "L", "save it as 8-bit grey TIFF of 0 and 255")
    values = {int(v) for v in np.flatnonzero(np.bincount(mask_HW.ravel(), minlength=256))}
    if not (values <= {0, 255} or values <= {0, 1}):
        raise FileError(
            key,
            f"is not binary: it holds {shortened(sorted(values))}",
            "a mask holds 0 and 255 (or 0 and 1); export it without smoothing or lossy compression",
        )
    return (mask_HW > 0).astype(np.uint8)


@dataclass(frozen=True)
class Picture:
    """A decoded file, whatever it shows."""

    pixels: NDArray[np.generic]
    mode: str
    """Pillow's name for the kind of pixels."""
    channels: int
    bits: int
    """Of one channel, in the file."""


def decode_picture(key: str, data: bytes, formats: tuple[str, ...] = ("TIFF",)) -> Picture:
    """Decode a TIFF or PNG of one page; raises ``FileError`` for damaged files and any other format."""
    kinds = " or ".join(formats)
    # A process-wide switch: left on by another library, half a file would decode to a half-black slice.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        picture = Image.open(io.BytesIO(data), formats=formats)
        pages = getattr(picture, "n_frames", 1)
        channels, bits = _depth(picture, data)
        pixels = np.array(picture)
    except _DAMAGE as error:
        reason = f"no {kinds} header" if isinstance(error, UnidentifiedImageError) else str(error)
        raise FileError(
            key, f"is damaged or no {kinds} ({len(data)} bytes, {reason})", "restore it"
        ) from error
    if pages != 1:
        raise FileError(key, f"holds {pages} pages", "save each slice as a file of its own")
    return Picture(pixels, picture.mode, channels, bits)


def _depth(picture: Image.Image, data: bytes) -> tuple[int, int]:
    """Channels and bits of each, by the file's own word: Pillow cuts 16-bit RGB down to 8 without one."""
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        tags = picture.tag_v2
        return tags.get(_SAMPLES_PER_PIXEL, 1), max(tags.get(_BITS_PER_SAMPLE, (1,)))
    return len(picture.getbands()), data[_PNG_BIT_DEPTH]


def _decode(key: str, data: bytes, mode: str, remedy: str) -> Pixels:
    picture = decode_picture(key, data)
    if picture.mode != mode or picture.bits != 8:
        what = f"is a {picture.channels}-channel {picture.bits}-bit image (mode {picture.mode})"
        raise FileError(key, what, remedy)
    return picture.pixels.astype(np.uint8, copy=False)


def _fetch(store: ObjectStore, keys: Sequence[str]) -> dict[str, bytes]:
    """The bytes of each object; one that is missing is left out."""

    def get(key: str) -> bytes | None:
        try:
            return store.get(key)
        except MissingObject:
            return None

    with ThreadPoolExecutor(_READERS) as pool:
        return {key: data for key, data in zip(keys, pool.map(get, keys), strict=True) if data is not None}


def _size_faults(
    patient: PatientFiles, images: dict[int, Pixels], masks: dict[int, Pixels]
) -> list[FileError]:
    """Masks of another size than their image, and images of another size than most of the patient's."""
    if not images:
        return []
    (height, width), _ = Counter(image.shape[:2] for image in images.values()).most_common(1)[0]
    faults = []
    for files in patient.slices:
        image, mask = images.get(files.number), masks.get(files.number)
        if image is None:
            continue
        h, w, _ = image.shape
        if (h, w) != (height, width):
            what = f"is {h}×{w} pixels, other slices of the patient {height}×{width}"
            faults.append(FileError(files.image, what, "resample the slices of a patient to one size"))
        if mask is not None and mask.shape != (h, w):
            what = f"is {mask.shape[0]}×{mask.shape[1]} pixels, its image {h}×{w}"
            faults.append(FileError(files.mask, what, "export the mask on the image's grid"))
    return faults
