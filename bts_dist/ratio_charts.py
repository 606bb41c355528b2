"""Charts whose axes both run from 0 to 1: what probabilities are worth, and what another threshold had given."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from bts_dist import plot
from bts_dist.charts import Chart, Row, is_number, points

_SIDE = 400
_X = plot.Scale(0.0, 1.0, 46, _SIDE - 14, step=0.2)
_Y = plot.Scale(0.0, 1.0, _SIDE - 40, 30, step=0.2)

_REGIONS = {"all": "every voxel", "near": "near a tumour"}
_SCORES = {
    "dice/patient": "Dice, patient",
    "precision/pooled": "precision",
    "sensitivity/pooled": "sensitivity",
}


def regions(calibration: Mapping[str, Row | None]) -> list[dict[str, Any]]:
    """The regions that have voxels, each with its name in words, ``where``."""
    return [{**found, "where": _REGIONS.get(name, name)} for name, found in calibration.items() if found]


def reliability_chart(calibration: Mapping[str, Row | None]) -> list[Chart]:
    """The share of tumour in each bin of predicted probability, a line a region; on the diagonal they agree."""
    lines: list[plot.Line] = []
    dots: list[str] = []
    for region in regions(calibration):
        filled = [row for row in region["bins"] if is_number(row["mean_probability"])]
        if filled:
            line = plot.Line(region["where"], points(filled, "mean_probability", "tumour_share"))
            dots += [_bin(len(lines), line.label, row) for row in filled]
            lines.append(line)
    if not lines:
        return []
    ideal = f'<path class="mark" d="M{_X(0):g} {_Y(0):g}L{_X(1):g} {_Y(1):g}"/>'
    frame = [plot.axes(_X, _Y, "predicted probability of tumour"), ideal]
    return [("Share that is tumour", _chart("Share of tumour by probability", frame, lines, dots))]


def threshold_chart(thresholds: Sequence[Row], chosen: float | None) -> list[Chart]:
    """Scores by probability threshold, with a rule at the one that was chosen."""
    lines = [plot.Line(label, points(thresholds, "threshold", key)) for key, label in _SCORES.items()]
    lines = [line for line in lines if line.points]
    if not lines:
        return []
    frame = [plot.axes(_X, _Y, "threshold")]
    if chosen is not None:
        frame.append(f'<path class="mark" d="M{_X(chosen):.1f} {_Y.end:g}V{_Y.start:g}"/>')
    bands = plot.hover_bands(lines, _X, _Y, "threshold")
    return [("Scores by threshold", _chart("Scores by threshold", frame, lines, [bands]))]


def _chart(name: str, frame: Sequence[str], lines: Sequence[plot.Line], marks: Sequence[str]) -> str:
    drawn = [_polyline(index, line) for index, line in enumerate(lines)]
    legend = plot.legend([line.label for line in lines])
    return plot.svg(name, _SIDE, _SIDE, [*frame, *drawn, *marks, legend])


def _polyline(index: int, line: plot.Line) -> str:
    path = " ".join(f"{_X(x):.1f},{_Y(y):.1f}" for x, y in line.points)
    return f'<polyline class="line line-{index}" points="{path}"/>'


def _bin(index: int, label: str, row: Row) -> str:
    """A bin as a dot; hovering tells how many voxels it rests on."""
    probability, share = row["mean_probability"], row["tumour_share"]
    title = f"{label}: of {row['voxels']:,} voxels at {probability:.3f}, {share:.3f} are tumour"
    place = f'cx="{_X(probability):.1f}" cy="{_Y(share):.1f}"'
    return f'<circle class="bin bin-{index}" {place} r="3.5"><title>{escape(title)}</title></circle>'
