"""A run on one self-contained HTML page: no network, images inside, readable on a phone and in the dark."""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined, Template

from bts_dist import charts, plot
from bts_dist.charts import Row, is_number
from shards import picture
from shards.errors import InputError

CLAIM = {"dice/slice": 0.97, "iou/pooled": 0.83}
"""The numbers the system is measured against, where a score names no others."""

Overlay = tuple[str, int, float, bytes]
"""(patient, slice number, the patient's Dice, PNG file)"""

_QUANTITIES = {
    "dice": "Dice",
    "iou": "IoU",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "precision": "Precision",
    "hd95": "HD95",
    "asd": "ASD",
    "surface_dice": "Surface Dice",
    "volume_error": "Volume error",
    "volume_bias": "Volume bias",
    "lesion_f1": "Lesion F1",
}
_DISTANCES = ("hd95", "asd")
_OPEN_ENDED = (*_DISTANCES, "volume_error", "volume_bias")
"""Quantities that have no place on the axis of ratios."""
_AGGREGATIONS = {
    "patient": "per patient, in 3D",
    "slice": "per slice",
    "slice_positive": "per slice with tumour",
    "pooled": "pooled over all pixels",
}


@dataclass(frozen=True)
class RunRecord:
    """What a run left behind, as read from its folder."""

    name: str
    config: Mapping[str, Any]
    epochs: Sequence[Row]
    """Rows of epoch metrics: ``epoch``, ``train/loss``, ``val/dice/patient``, ``lr``, ``time/epoch_s``…"""
    score: Row | None
    """score.json: ``metrics`` and ``patients``, and where known ``threshold``, ``checkpoint``, ``data`` and
    ``claim``, which maps names of metrics to values."""
    overlays: Sequence[Overlay] = ()
    trials: Sequence[Row] = ()
    """Trials of a search.  The learning rate is the column called ``lr`` or ``….lr``, the result the first
    column with ``dice`` in its name; ``epochs`` tells those stopped early."""


def write_report(run: RunRecord, dest: Path) -> Path:
    """Write the run's page to the file ``dest``, whose folder is made if need be, and return it.

    Raises:
        InputError: the run has no score yet, or its score lacks a part.
    """
    if run.score is None:
        raise InputError(f"run {run.name} has no score yet; make one first: bts score {run.name}")
    missing = [key for key in ("metrics", "patients") if not run.score.get(key)]
    if missing or "dice/patient" not in run.score["metrics"]:
        what = " and ".join(missing) or "metric dice/patient"
        raise InputError(f"the score of run {run.name} has no {what}; make it anew: bts score {run.name}")
    page = page_template("report.html.j2").render(_content(run, run.score))
    dest.parent.mkdir(parents=True, exist_ok=True)
    dest.write_text(page, encoding="utf-8")
    return dest


def page_template(name: str) -> Template:
    """A page's template, with the filters for numbers and the style that all pages share."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=_number, count=_count, cell=_cell)
    folder = files("bts_dist")
    environment.globals["style"] = folder.joinpath("page.css").read_text(encoding="utf-8")
    return environment.from_string(folder.joinpath(name).read_text(encoding="utf-8"))


def _content(run: RunRecord, score: Row) -> dict[str, Any]:
    metrics, patients = score["metrics"], score["patients"]
    claim = {key: target for key, target in (score.get("claim") or CLAIM).items() if key in metrics}
    axis = _ratio_axis(metrics, claim)
    return {
        "name": run.name,
        "num_slices": sum(patient["slices"] for patient in patients),
        "num_tumour_slices": sum(patient["tumour_slices"] for patient in patients),
        "axis": axis,
        "headline": _metric("dice/patient", metrics, axis, None),
        "claims": [_metric(key, metrics, axis, target) for key, target in claim.items()],
        "identity": _identity(claim),
        "means": {key: row["mean"] for key, row in metrics.items()},
        "metrics": [_metric(key, metrics, axis, claim.get(key)) for key in _in_order(metrics)],
        "training": _training(run.epochs),
        "search": _search(run.trials),
        "patients": sorted(patients, key=lambda patient: _sort_key(patient["dice"])),
        "unit": patients[0].get("unit", "px"),
        "patient_charts": charts.patient_charts(patients),
        "gallery": _gallery(run.overlays),
        "colours": {"truth": picture.TRUTH, "prediction": picture.PREDICTION},
        "config": yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True),
        "provenance": _provenance(run, score),
    }


def _metric(key: str, metrics: Row, axis: tuple[float, float], target: float | None) -> dict[str, Any]:
    """One row of the score with its name, its interval drawn and, against a target, the verdict."""
    row = metrics[key]
    quantity, _, group = key.partition("/")
    mean, low, high = row["mean"], row["low"], row["high"]
    bar = None
    if is_number(mean) and is_number(low) and is_number(high):
        own = plot.fit((min(low, 0.0), max(high, 0.0)), 0, 1)
        domain = axis if _is_ratio(key) else (own.low, own.high)
        bar = plot.interval_bar(low, mean, high, domain, target)
    verdict = {}
    if target is not None:
        verdict = {"target": target, "reached": is_number(mean) and mean >= target}
        verdict["unsettled"] = bar is not None and low < target <= high
    unit = row.get("unit") or ("px" if quantity in _DISTANCES else None)
    name = _QUANTITIES.get(quantity, quantity) + (f" ({unit})" if unit else "")
    of_lesions = key == "lesion_f1/pooled"
    label = f"{name} {'pooled over all lesions' if of_lesions else _AGGREGATIONS.get(group, group)}"
    digits = 1 if quantity in _DISTANCES else 3
    return {**row, "key": key, "label": label, "digits": digits, "bar": bar, **verdict}


def _in_order(metrics: Row) -> list[str]:
    """Dice and IoU of each aggregation side by side, then the other metrics."""
    pairs = [f"{quantity}/{group}" for group in _AGGREGATIONS for quantity in ("dice", "iou")]
    return [key for key in pairs if key in metrics] + [key for key in metrics if key not in pairs]


def _is_ratio(key: str) -> bool:
    return key.partition("/")[0] not in _OPEN_ENDED


def _ratio_axis(metrics: Row, claim: Mapping[str, float]) -> tuple[float, float]:
    """One axis for all ratios: from a round value under the lowest of them to 1."""
    lows = [row["low"] for key, row in metrics.items() if _is_ratio(key) and is_number(row["low"])]
    return min(0.9, math.floor(min([*lows, *claim.values(), 1.0]) * 10) / 10), 1.0


def _identity(claim: Mapping[str, float]) -> dict[str, float] | None:
    """The claim's Dice as an IoU and its IoU as a Dice, IoU = D / (2 - D), when it names one of each."""
    dice = [target for key, target in claim.items() if key.startswith("dice/")]
    iou = [target for key, target in claim.items() if key.startswith("iou/")]
    if len(dice) != 1 or len(iou) != 1:
        return None
    d, j = dice[0], iou[0]
    return {"dice": d, "iou_of_dice": d / (2 - d), "iou": j, "dice_of_iou": 2 * j / (1 + j)}


def _training(epochs: Sequence[Row]) -> dict[str, Any] | None:
    if not epochs:
        return None
    seconds = [value for _, value in charts.points(epochs, "epoch", "time/epoch_s")]
    speeds = [value for _, value in charts.points(epochs, "epoch", "samples_per_s")]
    return {
        "charts": charts.training_charts(epochs),
        "table": _table(
            [{key: value for key, value in row.items() if not _of_account(key)} for row in epochs]
        ),
        "account": _account(epochs),
        "best": charts.best_epoch(epochs),
        "minutes": sum(seconds) / 60 if seconds else None,
        "samples_per_s": median(speeds) if speeds else None,
    }


def _of_account(key: str) -> bool:
    return key.startswith(("share/", "straggler/")) or key in ("flops_per_s", "peak_flops_per_s", "mfu")


def _account(epochs: Sequence[Row]) -> dict[str, Any] | None:
    """Where the time of each epoch went; None for records that do not tell."""
    if not any(map(_of_account, epochs[-1])):
        return None
    return _table([{key: row[key] for key in row if key == "epoch" or _of_account(key)} for row in epochs])


def _search(trials: Sequence[Row]) -> dict[str, Any] | None:
    if not trials:
        return None
    columns = _columns(trials)
    rate = next((name for name in columns if name.split(".")[-1] == "lr"), "lr")
    result = next((name for name in columns if "dice" in name), "dice")
    best_first = sorted(trials, key=lambda trial: _sort_key(trial.get(result)), reverse=True)
    return {"table": _table(best_first), "charts": charts.search_chart(trials, rate, result)}


def _gallery(overlays: Sequence[Overlay]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The lower half by Dice, worst first, then the upper half, best first."""
    tiles = [
        {"patient": patient, "slice": number, "dice": dice, "png": base64.b64encode(png).decode()}
        for patient, number, dice, png in sorted(overlays, key=lambda overlay: _sort_key(overlay[2]))
    ]
    half = (len(tiles) + 1) // 2
    groups = [("Lowest Dice", tiles[:half]), ("Highest Dice", tiles[half:][::-1])]
    return [(title, group) for title, group in groups if group]


def _provenance(run: RunRecord, score: Row) -> dict[str, Any]:
    facts = {"run": run.name, "checkpoint": score.get("checkpoint"), "threshold": score.get("threshold")}
    facts |= {f"data: {key.replace('_', ' ')}": value for key, value in (score.get("data") or {}).items()}
    return {key: value for key, value in facts.items() if value is not None}


def _table(rows: Sequence[Row]) -> dict[str, Any]:
    """Rows of differing keys as one table."""
    columns = _columns(rows)
    return {"columns": columns, "rows": [[row.get(name) for name in columns] for row in rows]}


def _columns(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _sort_key(value: Any) -> float:
    """A number as it is; what is none sorts below all."""
    return float(value) if is_number(value) else -math.inf


def _number(value: Any, digits: int = 3) -> str:
    return f"{value:.{digits}f}".replace("-", "−") if is_number(value) else "—"


def _count(value: Any) -> str:
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}") if is_number(value) else "—"


def _cell(value: Any) -> str:
    if value is None:
        return "—"
    return f"{value:.4g}".replace("-", "−") if isinstance(value, float) else str(value)
