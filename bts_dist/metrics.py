"""The table of scores: counts per slice first, ratios next, means with 95 % intervals over patients last.

Ratios are undefined where masks are empty.  Every row of the table says by its rule what it does then, because
the choice moves slice means by several points.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from bts_dist import counts as of
from bts_dist.config import ScoreConfig
from bts_dist.estimates import Estimate, Row, draw, estimate, mean_row, pooled_row, value_row
from bts_dist.patients import PatientScore, by_patient, patient_row, unit_of

_EMPTY_IS_ONE = "empty truth and empty prediction count as 1"
_POSITIVE_ONLY = "only slices whose truth has tumour"
_POOLED = "counts of all slices added first; a patient with empty truth and empty prediction adds nothing"
_TRUTH_ONLY = "left out where the truth is empty"
_PREDICTION_ONLY = "left out where the prediction is empty"
_HEALTHY_ONLY = "left out where the truth fills the volume; empty masks are nothing special"
_ADDED = "counts of all slices added first"
_DISTANCE = "empty truth and empty prediction count as 0; left out where exactly one of them is empty"
_SURFACE_DICE = "empty truth and empty prediction count as 1, exactly one of them empty as 0"
_VOLUME = "empty truth and empty prediction count as 0; left out where the truth alone is empty"
_LESIONS = "no lesion in truth and prediction counts as 1"
_LESIONS_POOLED = "lesions of all patients added first; a patient without any adds nothing"


def summarise(scores: Sequence[PatientScore], settings: ScoreConfig) -> dict[str, Estimate]:
    """Estimate every row of the table, with the intervals of ``estimates.draw``: all rows share the same draws.

    Args:
        scores: one per patient, in any order.
        settings: number of resamples, seed of the draws, tolerances.

    Returns:
        Rows by name.  A row for which no patient has a value is absent; no figure is ever NaN or infinite.

    Raises:
        ValueError: there is no patient, or a patient appears twice.
    """
    ordered = by_patient(scores)
    draws = draw(len(ordered), settings.bootstrap, settings.seed)
    rows = [*_overlap_rows(ordered), *_rate_rows(ordered), *_surface_rows(ordered, settings)]
    rows += [*_volume_rows(ordered), *_lesion_rows(ordered)]
    estimates = {row.name: estimate(row, draws) for row in rows if row.denominator.any()}
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


def _overlap_rows(scores: Sequence[PatientScore]) -> list[Row]:
    totals = [score.counts.sum(axis=0, keepdims=True) for score in scores]
    slices = [score.counts for score in scores]
    positive = [score.counts[score.has_tumour] for score in scores]
    rows: list[Row] = []
    for unit, rule, counts in (
        ("patient", _EMPTY_IS_ONE, totals),
        ("slice", _EMPTY_IS_ONE, slices),
        ("slice_positive", _POSITIVE_ONLY, positive),
    ):
        rows.append(mean_row(f"dice/{unit}", rule, [of.dice(own) for own in counts]))
        rows.append(mean_row(f"iou/{unit}", rule, [of.iou(own) for own in counts]))
    together = np.concatenate(totals)
    rows.append(pooled_row("dice/pooled", _POOLED, *of.dice_parts(together)))
    rows.append(pooled_row("iou/pooled", _POOLED, *of.iou_parts(together)))
    return rows


def _rate_rows(scores: Sequence[PatientScore]) -> list[Row]:
    rows: list[Row] = []
    for name, rule, parts in (
        ("sensitivity", _TRUTH_ONLY, [of.sensitivity_parts(score.total) for score in scores]),
        ("specificity", _HEALTHY_ONLY, [score.specificity_parts for score in scores]),
        ("precision", _PREDICTION_ONLY, [of.precision_parts(score.total) for score in scores]),
    ):
        rows.append(value_row(f"{name}/patient", rule, [of.ratio(own) for own in parts]))
        numerator, denominator = (np.array(column) for column in zip(*parts, strict=True))
        rows.append(pooled_row(f"{name}/pooled", _ADDED, numerator, denominator))
    return rows


def _surface_rows(scores: Sequence[PatientScore], settings: ScoreConfig) -> list[Row]:
    unit = unit_of(scores)
    tolerance = settings.tolerance_mm if unit == "mm" else settings.tolerance_px
    found = [score.surface(unit) for score in scores]
    within = f"at {tolerance:g} {unit}"
    return [
        value_row("hd95/patient", _DISTANCE, [surface.hd95 for surface in found], unit),
        value_row("asd/patient", _DISTANCE, [surface.asd for surface in found], unit),
        value_row("surface_dice/patient", _SURFACE_DICE, [surface.surface_dice for surface in found], within),
    ]


def _volume_rows(scores: Sequence[PatientScore]) -> list[Row]:
    bias = [score.volume_bias for score in scores]
    size = [None if value is None else abs(value) for value in bias]
    return [
        value_row("volume_error/patient", _VOLUME, size),
        value_row("volume_bias/patient", _VOLUME, bias),
    ]


def _lesion_rows(scores: Sequence[PatientScore]) -> list[Row]:
    lesions = np.stack([score.lesions for score in scores])
    return [
        value_row("lesion_f1/patient", _LESIONS, [score.lesion_f1 for score in scores]),
        pooled_row("lesion_f1/pooled", _LESIONS_POOLED, *of.dice_parts(lesions)),
    ]


def to_json(scores: Sequence[PatientScore], estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    """The table and its patients, sorted by patient, as plain Python values.

    Raises:
        ValueError: the pooled rows contradict each other, there is no patient, or one appears twice.
    """
    check_pooled(estimates)
    unit = unit_of(scores)
    return {
        "metrics": {name: asdict(estimate) for name, estimate in estimates.items()},
        "patients": [patient_row(score, unit) for score in by_patient(scores)],
    }
