"""A run on one self-contained HTML page: no network, images inside, readable on a phone and in the dark."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined, Template

from bts_dist import charts, choice_tables, cohort_table, gallery, ratio_charts, score_tables
from bts_dist.charts import Row, is_number
from bts_dist.score_tables import columns, identity, in_order, metric, table
from shards import picture
from shards.errors import InputError

CLAIM = {"dice/slice": 0.97, "iou/pooled": 0.83}
"""The numbers the system is measured against, where a score names no others."""

_OF_SPEED = ("flops_per_s", "peak_flops_per_s", "mfu", "device", "devices")

Overlay = tuple[str, int, float, bytes]
"""(patient, slice number, the patient's Dice, PNG file)"""


@dataclass(frozen=True)
class RunRecord:
    """What a run left behind, as read from its folder."""

    name: str
    config: Mapping[str, Any]
    epochs: Sequence[Row]
    """Rows of epoch metrics: ``epoch``, ``train/loss``, ``val/dice/patient``, ``lr``, ``time/epoch_s``…"""
    score: Row | None
    """score.json: ``metrics`` and ``patients``, and where known ``threshold``, ``checkpoint``, ``predicts``,
    ``inference``, ``data``, ``differs``, ``subgroups``, ``calibration``, ``thresholds``, ``folds`` and ``over_folds``,
    and ``claim``, which maps names of metrics to values.
    """
    overlays: Sequence[Overlay] = ()
    """Pictures for readers whose browser runs no scripts, and for scores without ``slices``."""
    trials: Sequence[Row] = ()
    """Trials of a search.  The learning rate is the column called ``lr`` or ``….lr``, the result the first
    column with ``dice`` in its name; ``epochs`` tells those stopped early."""
    slices: Sequence[gallery.PatientSlices] = ()
    """Every slice of every test patient."""


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
    for file in ("page.css", "page.js", "gallery.css", "gallery.js"):
        environment.globals[file.replace(".", "_")] = folder.joinpath(file).read_text(encoding="utf-8")
    return environment.from_string(folder.joinpath(name).read_text(encoding="utf-8"))


def _content(run: RunRecord, score: Row) -> dict[str, Any]:
    metrics, patients = score["metrics"], score["patients"]
    claim = {key: target for key, target in (score.get("claim") or CLAIM).items() if key in metrics}
    axis = score_tables.ratio_axis(metrics, claim)
    worst_first = sorted(patients, key=lambda patient: (_sort_key(patient["dice"]), patient["patient"]))
    return {
        "name": run.name,
        "leak": score.get("leak"),
        "differs": _differs(score.get("differs")),
        "num_slices": sum(patient["slices"] for patient in patients),
        "num_tumour_slices": sum(patient["tumour_slices"] for patient in patients),
        "axis": axis,
        "headline": metric("dice/patient", metrics, axis, None),
        "claims": [metric(key, metrics, axis, target) for key, target in claim.items()],
        "identity": identity(claim),
        "means": {key: row["mean"] for key, row in metrics.items()},
        "metrics": [metric(key, metrics, axis, claim.get(key)) for key in in_order(metrics)],
        "training": _training(run.epochs),
        "search": _search(run.trials),
        "patients": worst_first,
        "patient_columns": score_tables.patient_columns(patients),
        "folds": _folds(score),
        "patient_charts": charts.patient_charts(patients),
        "subgroups": score_tables.subgroup_rows(score.get("subgroups") or {}),
        "probability_charts": [
            *ratio_charts.reliability_chart(score.get("calibration") or {}),
            *ratio_charts.threshold_chart(score.get("thresholds") or [], _one_threshold(score)),
        ],
        "calibration": ratio_charts.regions(score.get("calibration") or {}),
        "choices": choice_tables.choices(score.get("inference")),
        "fold_choices": choice_tables.fold_choices(score.get("folds") or []),
        "predicts": score.get("predicts"),
        "viewer": _viewer(worst_first, run.slices),
        "overlays": _overlays(run.overlays),
        "colours": {"truth": picture.TRUTH, "prediction": picture.PREDICTION},
        "config": yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True),
        "provenance": _provenance(run, score),
    }


def _differs(differs: Row | None) -> dict[str, Any] | None:
    """The comparison with the training patients; None for scores on the model's own data set."""
    if differs is None:
        return None
    shown = {
        "title": cohort_table.TITLE,
        "headings": cohort_table.HEADINGS,
        "rows": cohort_table.rows(differs),
    }
    return shown | {key: differs[key] for key in ("rule", "unknown")}


def _one_threshold(score: Row) -> float | None:
    """The threshold of all predictions; None where each fold of a cross-validation has its own."""
    threshold = score.get("threshold")
    return threshold if isinstance(threshold, float) else None


def _folds(score: Row) -> dict[str, Any] | None:
    """What each fold of a cross-validation scored; None outside of one, and for a score that does not tell."""
    over = score.get("over_folds")
    return {"rows": score["folds"], "over": over} if over else None


def _training(epochs: Sequence[Row]) -> dict[str, Any] | None:
    if not epochs:
        return None
    seconds = [value for _, value in charts.points(epochs, "epoch", "time/epoch_s")]
    speeds = [value for _, value in charts.points(epochs, "epoch", "samples_per_s")]
    return {
        "charts": charts.training_charts(epochs),
        "table": table(
            [{key: value for key, value in row.items() if not _of_account(key)} for row in epochs]
        ),
        "account": _account(epochs),
        "best": charts.best_epoch(epochs),
        "minutes": sum(seconds) / 60 if seconds else None,
        "samples_per_s": median(speeds) if speeds else None,
    }


def _of_account(key: str) -> bool:
    return key.startswith(("share/", "straggler/")) or key in _OF_SPEED


def _account(epochs: Sequence[Row]) -> dict[str, Any] | None:
    """Where the time of each epoch went; None for records that do not tell."""
    if not any(map(_of_account, epochs[-1])):
        return None
    return table([{key: row[key] for key in row if key == "epoch" or _of_account(key)} for row in epochs])


def _search(trials: Sequence[Row]) -> dict[str, Any] | None:
    if not trials:
        return None
    names = columns(trials)
    rate = next((name for name in names if name.split(".")[-1] == "lr"), "lr")
    result = next((name for name in names if "dice" in name), "dice")
    best_first = sorted(trials, key=lambda trial: _sort_key(trial.get(result)), reverse=True)
    return {"table": table(best_first), "charts": charts.search_chart(trials, rate, result)}


def _viewer(worst_first: Sequence[Row], slices: Sequence[gallery.PatientSlices]) -> dict[str, Any] | None:
    """The viewer's patients, worst first, as many as a page carries, and how many there is no room for."""
    by_patient = {each["patient"]: each for each in slices}
    known = [patient for patient in worst_first if patient["patient"] in by_patient]
    if not known:
        return None
    carried = gallery.fitting([by_patient[patient["patient"]] for patient in known], gallery.PAGE_BYTES)
    colours = {
        "truth": picture.TRUTH,
        "prediction": picture.PREDICTION,
        "tp": gallery.TRUE_POSITIVE,
        "fp": gallery.FALSE_POSITIVE,
        "fn": gallery.FALSE_NEGATIVE,
    }
    return {
        "patients": known[: len(carried)],
        "left_out": len(known) - len(carried),
        "colours": colours,
        "data": {"patients": carried, "colours": colours},
    }


def _overlays(overlays: Sequence[Overlay]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The lower half by Dice, worst first, then the upper half, best first."""
    tiles = [
        {"patient": patient, "slice": number, "dice": dice, "png": base64.b64encode(png).decode()}
        for patient, number, dice, png in sorted(overlays, key=lambda overlay: _sort_key(overlay[2]))
    ]
    half = (len(tiles) + 1) // 2
    groups = [("Lowest Dice", tiles[:half]), ("Highest Dice", tiles[half:][::-1])]
    return [(title, group) for title, group in groups if group]


def _provenance(run: RunRecord, score: Row) -> dict[str, Any]:
    facts = {"run": run.name, **{key: score.get(key) for key in ("checkpoint", "predicts", "threshold")}}
    facts |= {f"data: {key.replace('_', ' ')}": value for key, value in (score.get("data") or {}).items()}
    return {key: value for key, value in facts.items() if value is not None}


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
