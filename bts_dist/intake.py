"""What a user hands to prediction: which patients it holds, in which format, and what is wrong with it."""

from collections.abc import Callable, Sequence
from pathlib import Path

from bts_dist import dicom_intake, nifti_intake, slices_intake
from bts_dist.dicom_intake import DicomStudy, check_studies_differ, open_dicom
from bts_dist.nifti_intake import open_nifti, split_name
from bts_dist.slices_intake import is_mask, natural_order, open_slices
from bts_dist.study import Study
from shards.errors import InputError

WANTED = "slices (TIFF or PNG), a NIfTI volume (.nii or .nii.gz) or a DICOM series"

OPENERS: dict[str, Callable[[str, Sequence[Path]], Study]] = {
    "slices": open_slices,
    "nifti": open_nifti,
    "dicom": open_dicom,
}


def find_studies(source: str, progress: Callable[[int, int], None] | None = None) -> list[Study]:
    """The patients in a file, a folder of one patient's files, or a folder of patient folders.

    Everything is looked at but the pixels of NIfTI and DICOM; ``progress`` gets the patients done and all.

    Raises:
        InputError: there is nothing to predict on, or a part of it is unfit; it names the file.
    """
    if "://" in source:
        raise InputError(f"{source}: input is read from a local folder; copy it to this machine first")
    place = Path(source)
    if not place.exists():
        raise InputError(f"{source}: no such file or folder; give {WANTED}")
    try:
        groups = _groups(place)
    except OSError as error:
        raise InputError(f"{source} cannot be read ({error}); give {WANTED}") from error
    studies: list[Study] = []
    for patient, paths in groups.items():
        kinds = {_kind(path): path for path in paths}
        if len(kinds) > 1:
            (one, first), (other, second), *_ = sorted((str(kind), path) for kind, path in kinds.items())
            raise InputError(
                f"{first.parent} holds both {one} ({first.name}) and {other} ({second.name}); give a patient in one "
                "format"
            )
        studies.append(OPENERS[str(*kinds)](patient, paths))
        if progress is not None:
            progress(len(studies), len(groups))
    check_studies_differ([study for study in studies if isinstance(study, DicomStudy)])
    return studies


def _groups(place: Path) -> dict[str, list[Path]]:
    """The files of each patient, by the patient's name."""
    if place.is_file():
        if _kind(place) is None:
            raise InputError(f"{place} is none of {WANTED}")
        is_nifti = place.name.lower().endswith(nifti_intake.SUFFIXES)
        return {split_name(place)[0] if is_nifti else place.stem: [place]}
    own = _usable(place)
    folders = sorted(
        (p for p in place.iterdir() if p.is_dir() and not p.name.startswith(".")), key=natural_order
    )
    below = {folder: _usable(folder) for folder in folders}
    filled = [folder for folder, paths in below.items() if paths]
    if own and filled:
        raise InputError(
            f"{place} holds both images ({own[0].name}) and folders of them ({filled[0].name}/); give one patient's "
            "folder, or a folder of patient folders alone"
        )
    if own:
        return {place.resolve().name: own}
    if not filled:
        held = sorted(path.name for path in place.iterdir())
        found = f"holds no images (found: {', '.join(held[:3])})" if held else "is empty"
        raise InputError(f"{place} {found}; give {WANTED}, or a folder whose folders hold one patient each")
    empty = [folder for folder in folders if folder not in filled]
    if empty:
        raise InputError(
            f"{empty[0]} holds no images, unlike {filled[0].name}/ beside it; fill it, or move it away"
        )
    return {folder.name: below[folder] for folder in folders}


def _usable(folder: Path) -> list[Path]:
    """The images in a folder: no hidden files and no masks."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith("."))
    return [path for path in files if _kind(path) is not None and not _is_mask(path)]


def _is_mask(path: Path) -> bool:
    return path.suffix.lower() in slices_intake.SUFFIXES and is_mask(path)


def _kind(path: Path) -> str | None:
    """Which format a file has, or None."""
    name = path.name.lower()
    if name.endswith(nifti_intake.SUFFIXES):
        return "nifti"
    if name.endswith(slices_intake.SUFFIXES):
        return "slices"
    return "dicom" if dicom_intake.is_dicom(path) else None
