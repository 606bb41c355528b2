"""File names in Kaggle's layout: which patients a location holds, and which slices each of them has.

The layout is ``<folder>/<folder>_<n>.tif`` beside ``<folder>/<folder>_<n>_mask.tif``, one folder a patient.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from shards.errors import InputError
from shards.store import ObjectStore

LAYOUT = "<folder>/<folder>_<n>.tif with <folder>/<folder>_<n>_mask.tif, one folder a patient"

_FILE = re.compile(r"(?P<folder>.+)_(?P<number>\d{1,6})(?P<mask>_mask)?\.tiff?", re.IGNORECASE)
_DATE = re.compile(r"_\d{8}$")
_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_+ -]{,63}")  # A dot would end the key in a WebDataset shard.
_SITE = re.compile(r"[A-Za-z]+_([A-Za-z0-9]{2})_[A-Za-z0-9]+")


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
    patient = patient_of(folder)
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

    if not _NAME.fullmatch(patient):
        what = f"gives a patient the name {patient!r}, which no shard can hold"
        error(f"{path}/", what, "rename it: at most 64 ASCII letters, digits, spaces and _ + -, no dots")
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
        what = f"lacks {'slice' if len(gaps) == 1 else 'slices'} {shortened(gaps)} of {first} to {last}"
        problems.append(Problem("error", patient, f"{path}/", what, "restore them: a volume must be whole"))
    if first != 1:
        what = f"numbers its slices from {first}, not from 1"
        problems.append(Problem("warning", patient, f"{path}/", what, "check that no slice was lost"))
    return problems


def patient_of(folder: str) -> str:
    """The patient that a folder is called after: its name without a date at the end."""
    return _DATE.sub("", folder)


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


def shortened(numbers: Sequence[int], most: int = 8) -> str:
    """Numbers for a sentence, the first few of many."""
    shown = ", ".join(str(n) for n in numbers[:most])
    return shown if len(numbers) <= most else f"{shown} and {len(numbers) - most} more"
