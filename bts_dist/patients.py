"""One patient's score, and the table of patients."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np

from bts_dist import counts as of
from bts_dist.counts import Counts, Mask
from bts_dist.surface import Spacing, SurfaceScores

Unit = Literal["mm", "px"]


@dataclass(frozen=True, eq=False)  # == on the array would be elementwise
class PatientScore:
    """What one patient's prediction scored.

    Raises:
        ValueError: ``counts`` is no (n, 3) array of counts, or a surface score is not finite.
    """

    patient: str
    institution: str
    counts: Counts
    """int64 (number of slices, 3)."""
    slice_pixels: int
    """Pixels of a slice, tumour or not."""
    lesions: Counts
    """Found, imagined and missed lesions, int64 (3,)."""
    px: SurfaceScores
    """With neighbouring voxels 1 apart in all directions."""
    mm: SurfaceScores | None = None
    """``None`` where the spacing is not known."""
    spacing_mm: Spacing | None = None
    missing: tuple[str, ...] = ()
    """Sequences that the patient lacks."""
    fold: int | None = None
    """The fold of a cross-validation that held the patient out; ``None`` outside of one."""

    def __post_init__(self) -> None:
        counts = self.counts
        if counts.ndim != 2 or counts.shape[1] != 3 or len(counts) == 0 or counts.dtype != np.int64:
            raise ValueError(
                f"{self.patient}: counts are {counts.dtype} {counts.shape}; expected int64 (slices, 3)"
            )
        if (counts < 0).any():
            raise ValueError(f"{self.patient}: a count is negative")
        if (counts.sum(axis=1) > self.slice_pixels).any():
            raise ValueError(f"{self.patient}: a slice of {self.slice_pixels} pixels has counts of more")
        for surface in (self.px, self.mm):
            for name, value in asdict(surface).items() if surface is not None else ():
                if value is not None and not np.isfinite(value):
                    raise ValueError(f"{self.patient}: {name} is {value}; use None where it is undefined")

    @property
    def total(self) -> Counts:
        """Counts of the whole volume, int64 (3,)."""
        total: Counts = self.counts.sum(axis=0)
        return total

    @property
    def dice(self) -> float:
        """3-D Dice of the whole patient; 1 where truth and prediction are both empty."""
        return float(of.dice(self.total))

    @property
    def iou(self) -> float:
        """3-D IoU of the whole patient; 1 where truth and prediction are both empty."""
        return float(of.iou(self.total))

    @property
    def specificity_parts(self) -> of.Parts:
        return of.specificity_parts(self.total, np.array(self.slice_pixels * len(self.counts)))

    @property
    def has_tumour(self) -> Mask:
        """Whether the truth has tumour, per slice: bool (number of slices,)."""
        positive: Mask = self.counts[:, 0] + self.counts[:, 2] > 0
        return positive

    @property
    def tumour_voxels(self) -> int:
        return int(self.total[0] + self.total[2])

    @property
    def tumour_ml(self) -> float | None:
        """Volume of the true tumour in millilitres, where the spacing is known."""
        return None if self.spacing_mm is None else self.tumour_voxels * prod(self.spacing_mm) / 1000

    @property
    def volume_bias(self) -> float | None:
        """Predicted volume less the true one, over the true one; 0 where both are 0, else undefined at 0."""
        _, fp, fn = self.total.tolist()
        if fp == fn:
            return 0.0
        return (fp - fn) / self.tumour_voxels if self.tumour_voxels else None

    @property
    def lesion_f1(self) -> float:
        return float(of.dice(self.lesions))

    def surface(self, unit: Unit) -> SurfaceScores:
        if unit == "px":
            return self.px
        assert self.mm is not None
        return self.mm


def unit_of(scores: Sequence[PatientScore]) -> Unit:
    """Millimetres where every patient's spacing is known, else pixels: figures of two units have no mean."""
    return "mm" if all(score.mm is not None for score in scores) else "px"


def by_patient(scores: Sequence[PatientScore]) -> list[PatientScore]:
    """The scores in the order of their patients' names.

    Raises:
        ValueError: there are none, or a patient appears twice.
    """
    if not scores:
        raise ValueError("there are no patients to score")
    ordered = sorted(scores, key=lambda score: score.patient)
    for score, following in pairwise(ordered):
        if score.patient == following.patient:
            raise ValueError(f"patient {score.patient} is scored twice; join the slices into one score")
    return ordered


def write_csv(path: Path, scores: Sequence[PatientScore]) -> None:
    """Write a row per patient, sorted by patient; an undefined score is an empty cell.

    Raises:
        ValueError: there is no patient, or one appears twice.
    """
    rows = [patient_row(score, unit_of(scores)) for score in by_patient(scores)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def patient_row(score: PatientScore, unit: Unit) -> dict[str, str | int | float | None]:
    """A patient's figures by name, in plain values; ``None`` is undefined, and ``fold`` is there only if known."""
    tp, fp, fn = score.total.tolist()
    found, imagined, missed = score.lesions.tolist()
    surface, bias = score.surface(unit), score.volume_bias
    return {
        "patient": score.patient,
        **({} if score.fold is None else {"fold": score.fold}),
        "institution": score.institution,
        "missing": "+".join(score.missing),
        "slices": len(score.counts),
        "tumour_slices": int(score.has_tumour.sum()),
        "tumour_ml": score.tumour_ml,
        "dice": score.dice,
        "iou": score.iou,
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "sensitivity": of.ratio(of.sensitivity_parts(score.total)),
        "specificity": of.ratio(score.specificity_parts),
        "precision": of.ratio(of.precision_parts(score.total)),
        "hd95": surface.hd95,
        "asd": surface.asd,
        "surface_dice": surface.surface_dice,
        "unit": unit,
        "volume_error": None if bias is None else abs(bias),
        "volume_bias": bias,
        "lesions_found": found,
        "lesions_imagined": imagined,
        "lesions_missed": missed,
        "lesion_f1": score.lesion_f1,
    }
