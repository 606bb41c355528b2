"""Is a source fit for training?  Every problem of every file at once, and the figures that packing needs."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from shards.config import StoreConfig
from shards.layout import PatientFiles, Problem, find_patients
from shards.parallel import process_map
from shards.source import Contents, Pixels, read_contents
from shards.store import ObjectStore, open_store

SEQUENCES = ("pre", "flair", "post")
_FLAIR = SEQUENCES.index("flair")

Figures = tuple[float, float, float]


@dataclass(frozen=True)
class PatientScan:
    """What one patient's files hold.  Figures are of its readable slices; ``shape`` is (0, 0) without any."""

    patient: str
    folder: str
    institution: str
    num_slices: int
    shape: tuple[int, int]
    """Height and width in pixels."""
    tumour_pixels: tuple[int, ...]
    """One for each slice; 0 where the mask cannot be read."""
    missing: tuple[str, ...]
    """``pre``, ``post`` or both, when FLAIR stands in for them."""
    mean: Figures
    """Of each sequence over the head, in grey levels."""
    std: Figures
    """Of each sequence over the head, in grey levels; 1 where it would be 0."""
    digest: str
    """sha256 over the files' names and bytes: equal to that of ``read_volume``."""
    image_digests: tuple[tuple[str, str], ...]
    """Key and hash of the pixels of each image that is readable and not blank."""
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class SourceReport:
    """A source's patients, in the order of their folders, with everything that is wrong with them."""

    patients: tuple[PatientFiles, ...]
    scans: tuple[PatientScan, ...]
    problems: tuple[Problem, ...]
    """Errors first, then by patient."""
    fingerprint: str
    """sha256 over folder names and the scans' digests."""

    @property
    def errors(self) -> tuple[Problem, ...]:
        return tuple(p for p in self.problems if p.severity == "error")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        return tuple(p for p in self.problems if p.severity == "warning")

    def table(self) -> list[tuple[str, str, str, str, str]]:
        """One row a problem, below a row of headings: severity, patient, file, what is wrong, what to do."""
        rows = [(p.severity, p.patient, p.file, p.what, p.remedy) for p in self.problems]
        return [("severity", "patient", "file", "problem", "what to do"), *rows]


def verify_source(
    source: str,
    config: StoreConfig,
    workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> SourceReport:
    """Scan every patient of a source in ``workers`` processes; ``progress`` gets the patients done and all.

    Raises:
        InputError: the source holds no image with its mask, or cannot be read at all.
    """
    patients, problems = find_patients(open_store(source, config))
    scans: list[PatientScan] = []
    for scan in process_map(workers)(partial(_scan_at, source, config), patients):
        scans.append(scan)
        if progress is not None:
            progress(len(scans), len(patients))
    return join_scans(patients, scans, problems)


def scan_patient(store: ObjectStore, patient: PatientFiles) -> PatientScan:
    """Read one patient and collect its problems and figures; bad data never raises."""
    contents = read_contents(store, patient)
    images = list(contents.images.values())
    shape = Counter(image.shape[:2] for image in images).most_common(1)[0][0] if images else (0, 0)
    alike = [image for image in images if image.shape[:2] == shape]
    image_NHWC = np.stack(alike) if alike else np.zeros((0, 0, 0, len(SEQUENCES)), np.uint8)
    tumour_pixels = {number: int(mask.sum()) for number, mask in contents.masks.items()}
    missing = missing_sequences(image_NHWC)
    mean, std = head_figures(image_NHWC)
    blank = {n for n, image in contents.images.items() if (image == image[0, 0]).all()}
    digests = tuple(
        (files.image, _pixel_digest(contents.images[files.number]))
        for files in patient.slices
        if files.number in contents.images.keys() - blank
    )
    return PatientScan(
        patient=patient.patient,
        folder=patient.folder,
        institution=patient.institution,
        num_slices=len(patient.slices),
        shape=shape,
        tumour_pixels=tuple(tumour_pixels.get(s.number, 0) for s in patient.slices),
        missing=missing,
        mean=mean,
        std=std,
        digest=contents.digest,
        image_digests=digests,
        problems=(
            *(Problem("error", patient.patient, f.key, f.what, f.remedy) for f in contents.faults),
            *_blank_slices(patient, blank, tumour_pixels),
            *_repeated_slices(patient, digests),
            *_sequence_problems(patient, image_NHWC, missing),
            *_tumour_problems(patient, contents),
        ),
    )


def join_scans(
    patients: Sequence[PatientFiles], scans: Sequence[PatientScan], problems: Sequence[Problem]
) -> SourceReport:
    """Join the scans of all patients, made anywhere and in any order, and compare patients with each other.

    ``problems`` are those that ``find_patients`` gave.
    """
    scans = sorted(scans, key=lambda scan: scan.folder)
    fingerprint = hashlib.sha256()
    for scan in scans:
        fingerprint.update(f"{scan.folder}\0{scan.digest}\0".encode())
    found = [*problems, *(p for scan in scans for p in scan.problems)]
    found += [*_shared_slices(scans), *_odd_shapes(scans)]
    return SourceReport(
        patients=tuple(sorted(patients, key=lambda p: p.folder)),
        scans=tuple(scans),
        problems=tuple(sorted(found, key=lambda p: (p.severity, p.patient))),
        fingerprint=fingerprint.hexdigest(),
    )


def head_mask(image_NHWC: Pixels) -> NDArray[np.bool_]:
    """Pixels of the head rather than the air around it, bool (N, H, W): FLAIR above half of Otsu's threshold.

    Otsu (1979) puts the threshold of a FLAIR histogram about half-way between the means of air and of bright
    tissue.  Fluid lies below it and, beside very bright fat, the brain itself, so half of it is taken.  FLAIR
    alone decides because no patient lacks it and its air is always near 0: two patients of the TCGA set have
    a pre-contrast sequence with air at 76 and 103.  Over 88 patients of that set the rule keeps 22 to 61 % of
    the pixels, and over 92 % of the tumour's in all patients but one, whose mask spans a cavity that is
    as black as air.
    """
    flair_NHW = image_NHWC[..., _FLAIR]
    head_NHW: NDArray[np.bool_] = flair_NHW > _otsu(_histogram(flair_NHW)) / 2
    return head_NHW


def head_figures(image_NHWC: Pixels) -> tuple[Figures, Figures]:
    """Mean and standard deviation of each sequence over the head; 0 and 1 when there is none.

    They come from integer histograms, so they are the same on every machine.
    """
    head_NHW = head_mask(image_NHWC)
    levels = np.arange(256)
    mean, std = [], []
    for channel in range(len(SEQUENCES)):
        counts = _histogram(image_NHWC[..., channel][head_NHW])
        num, total, squares = (int(v) for v in (counts.sum(), counts @ levels, counts @ levels**2))
        mean.append(total / num if num else 0.0)
        std.append(((num * squares - total**2) ** 0.5 / num if num else 0.0) or 1.0)
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def recorded(figures: Figures) -> list[float]:
    """Figures as samples carry them, and as images are normalised by: to four decimals."""
    return [round(v, 4) for v in figures]


def _otsu(counts: NDArray[np.int64]) -> float:
    """The threshold that parts a 256-bin histogram in two with the most variance between them (Otsu 1979).

    It is the middle of the two parts' means, which is where the best split lies, and which is also defined
    when a gap in the histogram makes many splits the best.  0 for a histogram of one value.
    """
    levels = np.arange(256)
    below = np.cumsum(counts)
    above = below[-1] - below
    parted = (below > 0) & (above > 0)
    if not parted.any():
        return 0.0
    below, above, sum_below = below[parted], above[parted], np.cumsum(counts * levels)[parted]
    mean_below, mean_above = sum_below / below, (counts @ levels - sum_below) / above
    best = np.argmax(below.astype(np.float64) * above * (mean_above - mean_below) ** 2)
    return float(mean_below[best] + mean_above[best]) / 2


def _histogram(values: Pixels) -> NDArray[np.int64]:
    return np.bincount(values.ravel(), minlength=256)


def _pixel_digest(image_HWC: Pixels) -> str:
    return hashlib.blake2b(image_HWC.tobytes(), digest_size=16).hexdigest()


def missing_sequences(image_NHWC: Pixels) -> tuple[str, ...]:
    """``pre``, ``post`` or both, where they are copies of FLAIR throughout the volume."""
    flair_NHW = image_NHWC[..., _FLAIR]
    return tuple(
        name
        for channel, name in enumerate(SEQUENCES)
        if channel != _FLAIR and len(image_NHWC) and np.array_equal(image_NHWC[..., channel], flair_NHW)
    )


def _blank_slices(patient: PatientFiles, blank: set[int], tumour_pixels: dict[int, int]) -> Iterator[Problem]:
    for files in patient.slices:
        if files.number not in blank:
            continue
        tumour = tumour_pixels.get(files.number, 0)
        if tumour:
            what = f"is blank, yet its mask has {tumour} tumour pixels"
            yield Problem("error", patient.patient, files.image, what, "restore the image or empty the mask")
        else:
            what = "is blank: every pixel has one value"
            yield Problem("warning", patient.patient, files.image, what, "check that the export is whole")


def _repeated_slices(patient: PatientFiles, digests: Sequence[tuple[str, str]]) -> Iterator[Problem]:
    first: dict[str, str] = {}
    for image, digest in digests:
        if digest in first:
            what = f"is bit-identical to {first[digest]}"
            yield Problem("warning", patient.patient, image, what, "check that no slice was copied")
        first.setdefault(digest, image)


def _sequence_problems(
    patient: PatientFiles, image_NHWC: Pixels, missing: tuple[str, ...]
) -> Iterator[Problem]:
    for channel, name in enumerate(SEQUENCES):
        values = image_NHWC[..., channel]
        if len(values) and values.min() == values.max():
            what = f"has no {name} sequence: it is {values.flat[0]} everywhere"
            remedy = "exclude the patient" if name == "flair" else "copy FLAIR into it"
            yield Problem("error", patient.patient, patient.place, what, remedy)
        elif name in missing:
            what = f"has no {name} sequence: FLAIR stands in for it"
            yield Problem("warning", patient.patient, patient.place, what, "nothing: each sample records it")


def _tumour_problems(patient: PatientFiles, contents: Contents) -> Iterator[Problem]:
    readable = len(contents.masks) == len(patient.slices)
    if readable and not any(mask.any() for mask in contents.masks.values()):
        what = "has no tumour: all its masks are empty"
        yield Problem("warning", patient.patient, patient.place, what, "check that no mask is lost")


def _shared_slices(scans: Sequence[PatientScan]) -> Iterator[Problem]:
    """Images found in two folders: split apart, they would leak from training into the scores."""
    owners: dict[str, tuple[int, str]] = {}
    shared: dict[tuple[int, int], list[Problem]] = defaultdict(list)
    for index, scan in enumerate(scans):
        for image, digest in scan.image_digests:
            owner, original = owners.setdefault(digest, (index, image))
            if owner != index:
                what = f"is bit-identical to {original} of another patient"
                remedy = "keep it with one patient: copies leak from training into the scores"
                shared[owner, index].append(Problem("error", scan.patient, image, what, remedy))
    for first, *rest in shared.values():
        more = f" ({len(rest)} more slices of these two are, too)" if rest else ""
        yield Problem(first.severity, first.patient, first.file, first.what + more, first.remedy)


def _odd_shapes(scans: Sequence[PatientScan]) -> Iterator[Problem]:
    shapes = Counter(scan.shape for scan in scans if scan.shape != (0, 0))
    if len(shapes) < 2:
        return
    (height, width), _ = shapes.most_common(1)[0]
    for scan in scans:
        if scan.shape not in ((height, width), (0, 0)):
            what = f"has slices of {scan.shape[0]}×{scan.shape[1]} pixels, most patients {height}×{width}"
            remedy = "resample all patients to one size, or pack them apart"
            yield Problem("error", scan.patient, f"{scan.folder}/", what, remedy)


def _scan_at(source: str, config: StoreConfig, patient: PatientFiles) -> PatientScan:
    return scan_patient(_store(source, config), patient)


@lru_cache(maxsize=1)
def _store(source: str, config: StoreConfig) -> ObjectStore:
    """One store a process: an S3 client takes longer to make than a patient to scan."""
    return open_store(source, config)
