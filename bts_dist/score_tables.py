"""The tables of a score as a page shows them: names, order, digits, drawn intervals.

A score's rows lie as in ``score.json``.  Scores made before a row, a column or a whole table was known lack it, and
ones made later may have more.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bts_dist import plot
from bts_dist.charts import Row, is_number

_QUANTITIES = {
    "dice": "Dice",
    "iou": "IoU",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "precision": "Precision",
    "hd95": "HD95",
    "asd": "Surface distance",
    "surface_dice": "Surface Dice",
    "volume_error": "Volume error",
    "volume_bias": "Volume bias",
    "lesion_f1": "Lesion F1",
}
_AGGREGATIONS = {
    "patient": "per patient, in 3D",
    "slice": "per slice",
    "slice_positive": "per slice with tumour",
    "pooled": "pooled over all pixels",
}
_NOT_OF_PIXELS = {"lesion_f1/pooled": "Lesion F1 pooled over all lesions"}
_DISTANCES = ("hd95", "asd")
_CHANGES = ("volume_error", "volume_bias")
"""Shares of the true volume, without an upper bound."""

_COLUMNS = {
    "patient": "Patient",
    "fold": "Fold",
    "institution": "Institution",
    "missing": "Missing",
    **_QUANTITIES,
    "slices": "Slices",
    "tumour_slices": "With tumour",
    "tumour_ml": "Tumour, mL",
    "tp": "TP",
    "fp": "FP",
    "fn": "FN",
    "lesions_found": "Lesions found",
    "lesions_imagined": "Lesions imagined",
    "lesions_missed": "Lesions missed",
}
_KINDS = {"institution": "Institution", "missing": "Missing sequences", "size": "Tumour size"}

Axis = tuple[float, float]


def metric(key: str, metrics: Row, axis: Axis, target: float | None) -> dict[str, Any]:
    """One row of the score with its name, its interval drawn and, against a target, the verdict."""
    row = metrics[key]
    mean, low, high = row["mean"], row["low"], row["high"]
    bar = None
    if is_number(mean) and is_number(low) and is_number(high):
        bar = plot.interval_bar(low, mean, high, _domain(key, low, high, axis), target)
    verdict = {}
    if target is not None:
        verdict = {"target": target, "reached": is_number(mean) and mean >= target}
        verdict["unsettled"] = bar is not None and low < target <= high
    return {**row, "key": key, "label": _label(key, row), "digits": _digits(key), "bar": bar, **verdict}


def _label(key: str, row: Row) -> str:
    quantity, _, group = key.partition("/")
    unit = row.get("unit") or ("px" if quantity in _DISTANCES else None)
    name = _QUANTITIES.get(quantity, quantity) + (f" ({unit})" if unit else "")
    return _NOT_OF_PIXELS.get(key, f"{name} {_AGGREGATIONS.get(group, group)}")


def _domain(key: str, low: float, high: float, axis: Axis) -> Axis:
    if is_ratio(key):
        return axis
    reach = plot.fit((0.0, low, high), 0, 1)
    return reach.low, reach.high


def _digits(key: str) -> int:
    return 1 if key.split("/")[0] in _DISTANCES else 3


def in_order(metrics: Row) -> list[str]:
    """Dice and IoU of each aggregation side by side, then the other metrics."""
    pairs = [f"{quantity}/{group}" for group in _AGGREGATIONS for quantity in ("dice", "iou")]
    return [key for key in pairs if key in metrics] + [key for key in metrics if key not in pairs]


def is_ratio(key: str) -> bool:
    """Whether a metric lies between 0 and 1."""
    return key.split("/")[0] not in (*_DISTANCES, *_CHANGES)


def ratio_axis(metrics: Row, claim: Mapping[str, float]) -> Axis:
    """One axis for all ratios: from a round value under the lowest of them to 1."""
    lows = [row["low"] for key, row in metrics.items() if is_ratio(key) and is_number(row["low"])]
    return min(0.9, math.floor(min([*lows, *claim.values(), 1.0]) * 10) / 10), 1.0


def identity(claim: Mapping[str, float]) -> dict[str, float] | None:
    """The claim's Dice as an IoU and its IoU as a Dice, IoU = D / (2 - D), when it names one of each."""
    dice = [target for key, target in claim.items() if key.startswith("dice/")]
    iou = [target for key, target in claim.items() if key.startswith("iou/")]
    if len(dice) != 1 or len(iou) != 1:
        return None
    d, j = dice[0], iou[0]
    return {"dice": d, "iou_of_dice": d / (2 - d), "iou": j, "dice_of_iou": 2 * j / (1 + j)}


def patient_columns(patients: Sequence[Row]) -> list[dict[str, Any]]:
    """The columns of the table of patients: ``key``, ``label``, ``digits``, and ``text`` where it holds no numbers.

    ``digits`` is None for counts.  A column in which no patient has anything is left out, and so is ``unit``, which
    goes into the headings of distances.
    """
    filled = columns(
        {key: value for key, value in row.items() if value not in (None, "")} for row in patients
    )
    known = [key for key in _COLUMNS if key in filled]
    unit = patients[0].get("unit", "px")
    return [
        {
            "key": key,
            "label": _COLUMNS.get(key, key.replace("_", " ")) + (f", {unit}" if key in _DISTANCES else ""),
            "text": any(isinstance(row.get(key), str) for row in patients),
            "digits": None if any(type(row.get(key)) is int for row in patients) else _digits(key),
        }
        for key in [*known, *(name for name in filled if name not in (*known, "unit"))]
    ]


def subgroup_rows(subgroups: Mapping[str, Mapping[str, Row]]) -> list[dict[str, Any]]:
    """Dice of parts of the patients with the interval drawn, kind by kind; a kind of a single part tells nothing."""
    rows = [
        {**group, "kind": _KINDS.get(kind, kind), "name": name}
        for kind, groups in subgroups.items()
        if len(groups) > 1
        for name, group in groups.items()
    ]
    ends = [row[key] for row in rows for key in ("low", "mean", "high") if is_number(row[key])]
    for row in rows:
        row["bar"] = None
        if is_number(row["low"]) and is_number(row["high"]):
            reach = plot.fit(ends, 0, 1)
            row["bar"] = plot.interval_bar(
                row["low"], row["mean"], row["high"], (reach.low, reach.high), None
            )
    return rows


def table(rows: Sequence[Row]) -> dict[str, Any]:
    """Rows of differing keys as one table."""
    names = columns(rows)
    return {"columns": names, "rows": [[row.get(name) for name in names] for row in rows]}


def columns(rows: Iterable[Row]) -> list[str]:
    """Every key, in the order in which they first come."""
    return list(dict.fromkeys(name for row in rows for name in row))
