"""The table of scores: counts per slice first, ratios next, means with 95 % intervals over patients last.

Dice and IoU are undefined where truth and prediction are both empty.  Every row of the table says by its rule
what it does then, because the choice moves slice means by several points.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Counts = NDArray[np.int64]
"""Voxel counts; the last axis is true positives, false positives, false negatives."""
Ratios = NDArray[np.float64]

MIN_RESAMPLES = 100
"""With fewer, the outer 2.5 % of the bootstrap distribution rest on a value or two."""

_EMPTY_IS_ONE = "empty truth and empty prediction count as 1"
_POSITIVE_ONLY = "only slices whose truth has tumour"
_POOLED = "counts of all slices added first; a patient with empty truth and empty prediction adds nothing"
_HD95 = "empty truth and empty prediction count as 0; left out where exactly one of them is empty"
_SURFACE_DICE = "empty truth and empty prediction count as 1; left out where exactly one of them is empty"


def count(prediction_NHW: Mask, truth_NHW: Mask) -> Counts:
    """Count true positives, false positives and false negatives of each slice, as int64 of shape (N, 3).

    Raises:
        ValueError: the arrays are not boolean, of three axes and of one shape.
    """
    if prediction_NHW.dtype != np.bool_ or truth_NHW.dtype != np.bool_:
        raise ValueError(f"masks must be bool; got {prediction_NHW.dtype} and {truth_NHW.dtype}")
    if prediction_NHW.shape != truth_NHW.shape or truth_NHW.ndim != 3:
        raise ValueError(
            f"masks must share a shape (N, H, W); got {prediction_NHW.shape} and {truth_NHW.shape}"
        )
    both = np.count_nonzero(prediction_NHW & truth_NHW, axis=(1, 2))
    predicted = np.count_nonzero(prediction_NHW, axis=(1, 2))
    true = np.count_nonzero(truth_NHW, axis=(1, 2))
    return np.stack([both, predicted - both, true - both], axis=-1).astype(np.int64)


def dice(counts: Counts, empty: float = 1.0) -> Ratios:
    """Dice, 2 TP / (2 TP + FP + FN), of counts (..., 3) as float64 (...); ``empty`` where all three are 0."""
    return _divide(*_dice_parts(counts), empty)


def iou(counts: Counts, empty: float = 1.0) -> Ratios:
    """IoU, TP / (TP + FP + FN), of counts (..., 3) as float64 (...); ``empty`` where all three are 0."""
    return _divide(*_iou_parts(counts), empty)


def _dice_parts(counts: Counts) -> tuple[Counts, Counts]:
    tp, fp, fn = np.moveaxis(counts, -1, 0)
    return 2 * tp, 2 * tp + fp + fn


def _iou_parts(counts: Counts) -> tuple[Counts, Counts]:
    tp, fp, fn = np.moveaxis(counts, -1, 0)
    return tp, tp + fp + fn


def _divide(numerator: Counts, denominator: Counts, empty: float) -> Ratios:
    ratio = np.full(denominator.shape, empty, dtype=np.float64)
    np.divide(numerator, denominator, out=ratio, where=denominator > 0)
    return ratio


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
    hd95: float | None
    """``None`` is undefined: exactly one of the two masks is empty."""
    surface_dice: float | None

    def __post_init__(self) -> None:
        counts = self.counts
        if counts.ndim != 2 or counts.shape[1] != 3 or len(counts) == 0 or counts.dtype != np.int64:
            raise ValueError(
                f"{self.patient}: counts are {counts.dtype} {counts.shape}; expected int64 (slices, 3)"
            )
        if (counts < 0).any():
            raise ValueError(f"{self.patient}: a count is negative")
        for name, value in (("hd95", self.hd95), ("surface_dice", self.surface_dice)):
            if value is not None and not np.isfinite(value):
                raise ValueError(f"{self.patient}: {name} is {value}; use None where it is undefined")

    @property
    def dice(self) -> float:
        """3-D Dice of the whole patient; 1 where truth and prediction are both empty."""
        return float(dice(self.counts.sum(axis=0)))

    @property
    def iou(self) -> float:
        """3-D IoU of the whole patient; 1 where truth and prediction are both empty."""
        return float(iou(self.counts.sum(axis=0)))

    @property
    def has_tumour(self) -> Mask:
        """Whether the truth has tumour, per slice: bool (number of slices,)."""
        positive: Mask = self.counts[:, 0] + self.counts[:, 2] > 0
        return positive


@dataclass(frozen=True)
class Estimate:
    """One row of the table."""

    mean: float
    median: float | None
    """Over the values that the mean is taken of; ``None`` for a pooled row, which has only one."""
    low: float
    high: float
    """Ends of the 95 % interval."""
    n: int
    """Patients with at least one value in this row."""
    rule: str
    """What counts where a mask is empty."""


@dataclass(frozen=True)
class _Row:
    """A mean written as a ratio of sums over patients, so that resampling patients only weighs the sums."""

    name: str
    rule: str
    numerator: Ratios
    denominator: Ratios
    median: float | None


def summarise(scores: Sequence[PatientScore], resamples: int, seed: int) -> dict[str, Estimate]:
    """Estimate every row of the table, with an interval that treats the patients as the sample.

    The interval is the percentile bootstrap (Efron 1979) over patients: each resample draws as many patients
    as there are, with replacement, and takes all their slices along.  Slices of one patient resemble each
    other; drawing them singly would make the interval too narrow.  All rows share the same draws.  A resample
    in which a row has no value at all does not enter that row's interval.

    Args:
        scores: one per patient, in any order.
        resamples: number of resamples, at least ``MIN_RESAMPLES``.
        seed: of the draws.

    Returns:
        Rows by name.  A row for which no patient has a value is absent; no figure is ever NaN or infinite.

    Raises:
        ValueError: there is no patient, a patient appears twice, or ``resamples`` is too small.
    """
    if resamples < MIN_RESAMPLES:
        raise ValueError(f"{resamples} bootstrap resamples are too few; use at least {MIN_RESAMPLES}")
    ordered = _by_patient(scores)
    size = len(ordered)
    # How often each resample draws each patient, (resamples, patients): all that its sums depend on.
    draws = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=resamples)
    estimates = {row.name: _estimate(row, draws) for row in _rows(ordered) if row.denominator.any()}
    check_pooled(estimates)
    return estimates


def check_pooled(estimates: Mapping[str, Estimate]) -> None:
    """Refuse pooled rows that do not come from the same counts.

    Raises:
        ValueError: pooled Dice D and IoU J break J = D / (2 - D) by more than 1e-9.
    """
    if not {"dice/pooled", "iou/pooled"} <= estimates.keys():
        return
    d, j = estimates["dice/pooled"].mean, estimates["iou/pooled"].mean
    if not abs(j - d / (2 - d)) <= 1e-9:
        raise ValueError(f"pooled scores refused: Dice {d} implies IoU {d / (2 - d)}, but IoU is {j}")


def _by_patient(scores: Sequence[PatientScore]) -> list[PatientScore]:
    if not scores:
        raise ValueError("there are no patients to score")
    ordered = sorted(scores, key=lambda score: score.patient)
    for score, following in pairwise(ordered):
        if score.patient == following.patient:
            raise ValueError(f"patient {score.patient} is scored twice; join the slices into one score")
    return ordered


def _rows(scores: Sequence[PatientScore]) -> list[_Row]:
    totals = [score.counts.sum(axis=0, keepdims=True) for score in scores]
    slices = [score.counts for score in scores]
    positive = [score.counts[score.has_tumour] for score in scores]
    rows: list[_Row] = []
    for unit, rule, counts in (
        ("patient", _EMPTY_IS_ONE, totals),
        ("slice", _EMPTY_IS_ONE, slices),
        ("slice_positive", _POSITIVE_ONLY, positive),
    ):
        rows.append(_mean_row(f"dice/{unit}", rule, [dice(own) for own in counts]))
        rows.append(_mean_row(f"iou/{unit}", rule, [iou(own) for own in counts]))
    rows.append(_pooled_row("dice/pooled", *_dice_parts(np.concatenate(totals))))
    rows.append(_pooled_row("iou/pooled", *_iou_parts(np.concatenate(totals))))
    rows.append(_mean_row("hd95/patient", _HD95, [_if_defined(score.hd95) for score in scores]))
    surface_dice = [_if_defined(score.surface_dice) for score in scores]
    rows.append(_mean_row("surface_dice/patient", _SURFACE_DICE, surface_dice))
    return rows


def _if_defined(value: float | None) -> Ratios:
    return np.array([] if value is None else [value], dtype=np.float64)


def _mean_row(name: str, rule: str, values: Sequence[Ratios]) -> _Row:
    """The mean of all values, given each patient's own values, of which there may be none."""
    together = np.concatenate(values)
    return _Row(
        name,
        rule,
        numerator=np.array([own.sum() for own in values]),
        denominator=np.array([float(len(own)) for own in values]),
        median=float(np.median(together)) if len(together) else None,
    )


def _pooled_row(name: str, numerator: Counts, denominator: Counts) -> _Row:
    return _Row(name, _POOLED, numerator.astype(np.float64), denominator.astype(np.float64), median=None)


def _estimate(row: _Row, draws: NDArray[np.int64]) -> Estimate:
    numerators, denominators = draws @ row.numerator, draws @ row.denominator
    has_value = denominators > 0
    low, high = np.percentile(numerators[has_value] / denominators[has_value], [2.5, 97.5])
    return Estimate(
        mean=float(row.numerator.sum() / row.denominator.sum()),
        median=row.median,
        low=float(low),
        high=float(high),
        n=int(np.count_nonzero(row.denominator)),
        rule=row.rule,
    )


def to_json(scores: Sequence[PatientScore], estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    """The table and its patients, sorted by patient, as plain Python values.

    Raises:
        ValueError: the pooled rows contradict each other, there is no patient, or one appears twice.
    """
    check_pooled(estimates)
    return {
        "metrics": {name: asdict(estimate) for name, estimate in estimates.items()},
        "patients": [_patient_row(score) for score in _by_patient(scores)],
    }


def write_csv(path: Path, scores: Sequence[PatientScore]) -> None:
    """Write a row per patient, sorted by patient; an undefined score is an empty cell.

    Raises:
        ValueError: there is no patient, or one appears twice.
    """
    rows = [_patient_row(score) for score in _by_patient(scores)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _patient_row(score: PatientScore) -> dict[str, str | int | float | None]:
    tp, fp, fn = score.counts.sum(axis=0).tolist()
    return {
        "patient": score.patient,
        "institution": score.institution,
        "slices": len(score.counts),
        "tumour_slices": int(score.has_tumour.sum()),
        "dice": score.dice,
        "iou": score.iou,
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "hd95": score.hd95,
        "surface_dice": score.surface_dice,
    }


def best_threshold(counts: Sequence[Counts], thresholds: Sequence[float]) -> tuple[float, float]:
    """Choose the probability threshold with the highest mean Dice per patient.

    Args:
        counts: for each patient the whole-patient counts at each of the T thresholds, int64 (T, 3).
        thresholds: the T thresholds.

    Returns:
        The threshold and its mean Dice per patient.  Of equals the one nearest 0.5, then the lower one, wins.

    Raises:
        ValueError: there is no patient or no threshold, or an array's shape is not (T, 3).
    """
    expected = (len(thresholds), 3)
    if not counts or not thresholds or any(own.shape != expected for own in counts):
        raise ValueError(
            f"expected counts of shape {expected} for one patient or more, at one threshold or more"
        )
    means = dice(np.stack(counts)).mean(axis=0)
    # Sums of the same numbers in another order differ in the last bits: equal to 1e-12 is equal.
    equals = [index for index, mean in enumerate(means) if mean >= means.max() - 1e-12]
    best = min(equals, key=lambda index: (round(abs(thresholds[index] - 0.5), 12), thresholds[index]))
    return float(thresholds[best]), float(means[best])
