"""The charts of one run: what its epochs, trials and patients look like drawn.

Each function takes rows as they lie in the run's files and returns (title, SVG) pairs, leaving out what the
rows do not tell.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bts_dist import plot

Row = Mapping[str, Any]
Chart = tuple[str, str]

_CURVES = {
    "Loss": {"train/loss": "training", "val/loss": "validation"},
    "Validation": {
        "val/dice/patient": "Dice, patient",
        "val/dice/slice": "Dice, slice",
        "val/iou/pooled": "IoU, pooled",
    },
    "Learning rate": {"lr": "learning rate"},
}


def is_number(value: Any) -> bool:
    """Whether a cell of a row is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def points(rows: Iterable[Row], x: str, y: str) -> list[tuple[float, float]]:
    """The pairs of two columns, of the rows that have both."""
    return [(row[x], row[y]) for row in rows if is_number(row.get(x)) and is_number(row.get(y))]


def best_epoch(epochs: Sequence[Row]) -> float | None:
    """The first epoch of the highest ``val/dice/patient``."""
    scored = points(epochs, "epoch", "val/dice/patient")
    return max(scored, key=lambda point: point[1])[0] if scored else None


def training_charts(epochs: Sequence[Row]) -> list[Chart]:
    """Loss, validation scores and learning rate by epoch, with a rule at the best epoch."""
    best = best_epoch(epochs)
    charts = []
    for title, columns in _CURVES.items():
        lines = [plot.Line(label, points(epochs, "epoch", key)) for key, label in columns.items()]
        lines = [line for line in lines if line.points]
        if lines:
            charts.append((title, plot.line_chart(title, lines, "epoch", mark=best)))
    return charts


def search_chart(trials: Sequence[Row], rate: str, result: str) -> list[Chart]:
    """Result over learning rate, columns ``result`` and ``rate``: the best large, those cut short open."""
    drawn = [trial for trial in trials if points([trial], rate, result) and trial[rate] > 0]
    if not drawn:
        return []
    longest = max(trial.get("epochs") or 0 for trial in trials)
    best = max(drawn, key=lambda trial: float(trial[result]))
    dots = []
    for trial in drawn:
        cut_short = (trial.get("epochs") or 0) < longest
        title = "\n".join(f"{name}: {value}" for name, value in trial.items())
        look: plot.Look = "best" if trial is best else "open" if cut_short else "full"
        dots.append(plot.Dot(trial[rate], trial[result], title, look))
    name = "Dice by learning rate"
    return [(name, plot.dot_plot(name, dots, "learning rate", "Dice", log_x=True))]


def patient_charts(patients: Sequence[Row]) -> list[Chart]:
    """Dice by institution and by tumour size, a dot a patient: where a model is weak."""
    groups: dict[str, list[tuple[float, str]]] = {}
    dots = []
    for patient in patients:
        if not is_number(patient["dice"]):
            continue
        title = f"{patient['patient']}: {patient['dice']:.3f}"
        groups.setdefault(patient["institution"], []).append((patient["dice"], title))
        pixels = patient["tp"] + patient["fn"]
        if pixels:
            dots.append(plot.Dot(pixels, patient["dice"], f"{title}\n{pixels} px of tumour"))
    charts = []
    if groups:
        named = [(f"{name} ({len(group)})", group) for name, group in sorted(groups.items())]
        charts.append(("By institution", plot.strip_plot("Dice by institution", named, "Dice")))
    if dots:
        name = "Dice by tumour size"
        chart = plot.dot_plot(name, dots, "tumour in the truth, px", "Dice", log_x=True)
        charts.append(("By tumour size", chart))
    return charts
