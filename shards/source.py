"""Raw pairs in Kaggle's layout: which patients a location holds, and the pixels of one of them.

The layout is ``<folder>/<folder>_<n>.tif`` beside ``<folder>/<folder>_<n>_mask.tif``, one folder a patient.
An image is 8-bit RGB (pre-contrast, FLAIR, post-contrast), its mask 8-bit grey.
"""

import hashlib
import io
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from shards.errors import InputError
from shards.store import MissingObject, ObjectStore

Pixels = NDArray[np.uint8]

LAYOUT = "<folder>/<folder>_<n>.tif with <folder>/<folder>_<n>_mask.tif, one folder a patient"

_FILE = re.compile(r"(?P<folder>.+)_(?P<number>\d{1,6})(?P<mask>_mask)?\.tiff?", re.IGNORECASE)
_DATE = re.compile(r"_\d{8}$")
_SITE = re.compile(r"[A-Za-z]+_([A-Za-z0-9]{2})_[A-Za-z0-9]+")
_BITS_PER_SAMPLE, _SAMPLES_PER_PIXEL = 258, 277  # TIFF 6.0, section 8
# What Pillow was seen to raise for files with random bytes changed.
_DAMAGE = (OSError, ValueError, TypeError, OverflowError, SyntaxError, Image.DecompressionBombError)
_READERS = 8  # Threads that hide an object store's latency; a patient is some 50 small files.


@dataclass(frozen=True)
class SliceFiles:
    """One slice's files, as keys of the source's store."""

    number: int
    image: str
    mask: str


@dataclass(frozen=True)
class PatientFiles:
    patient: str
    """The folder's name without its date."""
    folder: str
    institution: str
    slices: tuple[SliceFiles, ...]
    """In the order of their numbers."""

    @property
    def place(self) -> str:
        """The folder as a key of the store, with a trailing slash."""
        return self.slices[0].image.rpartition("/")[0] + "/"


@dataclass(frozen=True)
class Problem:
    """Something wrong in the source: a sentence about ``file``, and what to do."""

    severity: Literal["error", "warning"]
    patient: str
    file: str
    what: str
    remedy: str


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


def find_patients(store: ObjectStore) -> tuple[list[PatientFiles], list[Problem]]:
    """List a source once: its patients by folder name, and what is wrong with names, pairs and numbering.

    The location may be the folder of patient folders or that one's parent.  Hidden files are ignored, and so
    is everything but TIFF files in folders.

    Raises:
        InputError: there is no image with its mask.
    """
    keys = [e.key for e in store.list() if not any(part.startswith(".") for part in e.key.split("/"))]
    patients: list[PatientFiles] = []
    problems: list[Problem] = []
    for path, names in sorted(_patient_folders(keys).items(), key=lambda item: item[0].rpartition("/")[2]):
        patient, wrong = _pair(path, names)
        problems += wrong
        if patient.slices:
            patients.append(patient)
    if not patients:
        found = (
            f"has {len(keys)} files, such as {keys[0]}, but no image with its mask"
            if keys
            else "is missing or empty"
        )
        raise InputError(
            f"{store.uri} {found}; expected {LAYOUT}. Set data.source to the folder of the patient folders"
        )
    return patients, problems + _two_folders(patients)


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
            f"is not binary: it holds {_some(sorted(values))}",
            "a mask holds 0 and 255 (or 0 and 1); export it without smoothing or lossy compression",
        )
    return (mask_HW > 0).astype(np.uint8)


def _decode(key: str, data: bytes, mode: str, remedy: str) -> Pixels:
    # A process-wide switch: left on by another library, half a file would decode to a half-black slice.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        picture = Image.open(io.BytesIO(data), formats=["TIFF"])
        assert isinstance(picture, TiffImagePlugin.TiffImageFile)
        pages, tags = picture.n_frames, picture.tag_v2
        channels, bits = tags.get(_SAMPLES_PER_PIXEL, 1), max(tags.get(_BITS_PER_SAMPLE, (1,)))
        pixels = np.array(picture)
    except _DAMAGE as error:
        reason = "no TIFF header" if isinstance(error, UnidentifiedImageError) else str(error)
        raise FileError(key, f"is damaged or no TIFF ({len(data)} bytes, {reason})", "restore it") from error
    if pages != 1:
        raise FileError(key, f"holds {pages} pages", "save each slice as a file of its own")
    if picture.mode != mode or bits != 8:  # Pillow cuts 16-bit RGB down to 8 without a word.
        raise FileError(key, f"is a {channels}-channel {bits}-bit image (mode {picture.mode})", remedy)
    return pixels


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


def _patient_folders(keys: Sequence[str]) -> dict[str, list[str]]:
    """Names of the TIFF files by folder, at the first of two depths where any file keeps the layout."""
    folders: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        path, _, name = key.rpartition("/")
        if path and name.lower().endswith((".tif", ".tiff")):
            folders[path].append(name)
    for depth in (0, 1):
        found = {path: names for path, names in folders.items() if path.count("/") == depth}
        if any(_parse(path, name) for path, names in found.items() for name in names):
            return found
    return {}


def _parse(path: str, name: str) -> tuple[int, bool] | None:
    """Slice number of a file, and whether it is a mask; None when the name breaks the layout."""
    found = _FILE.fullmatch(name)
    if found is None or found["folder"] != path.rpartition("/")[2]:
        return None
    return int(found["number"]), found["mask"] is not None


def _pair(path: str, names: Sequence[str]) -> tuple[PatientFiles, list[Problem]]:
    """Match one folder's images with their masks; the patient has the slices that have both."""
    folder = path.rpartition("/")[2]
    patient = _DATE.sub("", folder)
    images: dict[int, str] = {}
    masks: dict[int, str] = {}
    problems: list[Problem] = []

    def error(file: str, what: str, remedy: str) -> None:
        problems.append(Problem("error", patient, file, what, remedy))

    names_wanted = f"{folder}_<n>.tif or {folder}_<n>_mask.tif"
    if not any(_parse(path, name) for name in names):
        error(
            f"{path}/", "holds TIFF files of other names only", f"name them {names_wanted}, or move them away"
        )
        names = []
    for name in sorted(names):
        key = f"{path}/{name}"
        parsed = _parse(path, name)
        if parsed is None:
            error(key, "has an unreadable name", f"name it {names_wanted}, or move it away")
            continue
        number, is_mask = parsed
        side = masks if is_mask else images
        if side.setdefault(number, key) != key:
            error(key, f"has the slice number of {side[number]}", "keep one of them")
    for number in sorted(images.keys() - masks.keys()):
        error(images[number], "has no mask", f"add {folder}_{number}_mask.tif (all 0 where no tumour is)")
    for number in sorted(masks.keys() - images.keys()):
        error(masks[number], "has no image", f"add {folder}_{number}.tif, or remove the mask")

    slices = tuple(SliceFiles(n, images[n], masks[n]) for n in sorted(images.keys() & masks.keys()))
    site = _SITE.fullmatch(patient)
    problems += _numbering(patient, path, images.keys() | masks.keys())
    return PatientFiles(patient, folder, site[1] if site else "unknown", slices), problems


def _numbering(patient: str, path: str, numbers: set[int]) -> list[Problem]:
    if not numbers:
        return []
    problems = []
    first, last = min(numbers), max(numbers)
    gaps = sorted(set(range(first, last + 1)) - numbers)
    if gaps:
        what = f"lacks {'slice' if len(gaps) == 1 else 'slices'} {_some(gaps)} of {first} to {last}"
        problems.append(Problem("error", patient, f"{path}/", what, "restore them: a volume must be whole"))
    if first != 1:
        what = f"numbers its slices from {first}, not from 1"
        problems.append(Problem("warning", patient, f"{path}/", what, "check that no slice was lost"))
    return problems


def _two_folders(patients: Sequence[PatientFiles]) -> list[Problem]:
    """Folders of one patient would be scored, or split, as two."""
    first: dict[str, str] = {}
    problems = []
    for p in patients:
        if p.patient in first:
            what = f"is a second folder of {p.patient}, beside {first[p.patient]}"
            problems.append(Problem("error", p.patient, p.place, what, "keep one study of a patient"))
        first.setdefault(p.patient, p.place)
    return problems


def _some(numbers: Sequence[int], most: int = 8) -> str:
    shown = ", ".join(str(n) for n in numbers[:most])
    return shown if len(numbers) <= most else f"{shown} and {len(numbers) - most} more"
