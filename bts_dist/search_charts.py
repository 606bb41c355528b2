"""The charts of a search: its settings against its result, how its trials learnt, and where they were stopped."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from bts_dist.charts import Row, is_number
from bts_dist.plot import Scale, axes, fit, svg, tick_label

_HEIGHT, _TOP, _BOTTOM, _SIDE, _GAP = 300, 34, 26, 56, 120
_WIDTH, _LEFT, _RIGHT = 440, 46, 14
_ABSENT = "none"
"""Where a trial has no such setting."""


def parallel_coordinates(rows: Sequence[Row], keys: Sequence[str], result: str, logs: frozenset[str]) -> str:
    """A line a trial through one axis a setting, the result last; ``logs`` are the keys with logarithmic axes.

    Raises:
        ValueError: no trial has a result.
    """
    drawn = sorted((row for row in rows if is_number(row[result])), key=lambda row: float(row[result]))
    if not drawn:
        raise ValueError("no trial has a result")
    names = [*keys, result]
    places = [_axis([row[name] for row in drawn], log=name in logs) for name in names]
    xs = [_SIDE + _GAP * index for index in range(len(names))]
    parts = []
    for index, row in enumerate(drawn):
        heights = [place(row[name]) for name, place in zip(names, places, strict=True)]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in zip(xs, heights, strict=True))
        look = "best" if index == len(drawn) - 1 else "zero" if row["trial"] == 0 else ""
        strength = 0.15 + 0.6 * index / len(drawn)  # better trials lie on top, and stronger
        parts.append(
            f'<polyline class="trial {look}" style="stroke-opacity: {strength if not look else 1:.2f}" '
            f'points="{path}"><title>{escape(_told(row))}</title></polyline>'
        )
    for x, name, place in zip(xs, names, places, strict=True):
        parts.append(f'<path class="axis" d="M{x} {_TOP}V{_HEIGHT - _BOTTOM}"/>')
        short = name.split(".", 1)[-1]
        parts.append(f'<text class="row" text-anchor="middle" x="{x}" y="18">{escape(short)}</text>')
        for y, label in place.labels():
            parts.append(f'<text class="tick" x="{x + 6}" y="{y + 4:.1f}">{escape(label)}</text>')
    return svg("Settings and result of each trial", 2 * _SIDE + _GAP * (len(names) - 1), _HEIGHT, parts)


@dataclass(frozen=True)
class _Axis:
    """Where values stand on a vertical axis: numbers by size, others in rows of their own below them."""

    scale: Scale | None
    rows: Mapping[str, float]

    def __call__(self, value: Any) -> float:
        return self.scale(value) if self.scale is not None and is_number(value) else self.rows[_name(value)]

    def labels(self) -> list[tuple[float, str]]:
        ticks = [] if self.scale is None else self.scale.ticks()
        return [*((self(tick), tick_label(tick)) for tick in ticks), *((y, n) for n, y in self.rows.items())]


def _axis(values: Sequence[Any], *, log: bool) -> _Axis:
    bottom, top = float(_HEIGHT - _BOTTOM), float(_TOP)
    numbers = [value for value in values if is_number(value)]
    others = sorted({_name(value) for value in values if not is_number(value)})
    step = 26.0 if numbers else (bottom - top) / max(1, len(others) - 1)
    rows = {name: bottom - step * index for index, name in enumerate(others)}
    scale = fit(numbers, bottom - step * len(others), top, log=log) if numbers else None
    return _Axis(scale, rows)


def learning_curves(rows: Sequence[Row], best: int, y_label: str) -> str:
    """Each trial's score by epoch: the best and trial 0 stand out, and an open end is where a trial was stopped.

    Raises:
        ValueError: no trial has a score.
    """
    curves = {row["trial"]: [s for s in row["scores"] if is_number(s)] for row in rows}
    scores = [score for curve in curves.values() for score in curve]
    if not scores:
        raise ValueError("no trial has a score")
    longest = max(len(curve) for curve in curves.values())
    x = Scale(0.5, longest + 0.5, _LEFT, _WIDTH - _RIGHT, step=max(1.0, -(-longest // 8)))
    y = fit(scores, _HEIGHT - 40, 30)
    parts = [
        axes(x, y, "epoch"),
        f'<text class="caption" x="{_LEFT}" y="14">{escape(y_label)}</text>',
    ]
    status = {row["trial"]: row["status"] for row in rows}
    for number in sorted(curves, key=lambda n: (n == best, n == 0)):
        points = [(x(epoch), y(score)) for epoch, score in enumerate(curves[number], start=1)]
        if not points:
            continue
        look = "best" if number == best else "zero" if number == 0 else ""
        title = f"<title>trial {number}, {escape(str(status[number]))}</title>"
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        parts.append(f'<polyline class="trial {look}" points="{path}">{title}</polyline>')
        end = "open" if status[number] == "stopped" else "full"
        dot = f'<circle class="dot {"best" if number == best else end}" r="3"'
        parts.append(f'{dot} cx="{points[-1][0]:.1f}" cy="{points[-1][1]:.1f}">{title}</circle>')
    return svg("Score by epoch", _WIDTH, _HEIGHT, parts)


def bars(name: str, shares: Sequence[tuple[str, float]]) -> str:
    """A bar for each share of 1, the largest first."""
    left = 8 + 6.4 * max((len(label) for label, _ in shares), default=0)
    ordered = sorted(shares, key=lambda share: -share[1])
    parts = []
    for index, (label, share) in enumerate(ordered):
        y = 10 + 26 * index
        width = max(1.0, (_WIDTH - left - 50) * share)
        parts.append(f'<text class="row" x="0" y="{y + 12}">{escape(label)}</text>')
        parts.append(
            f'<rect class="share" x="{left:.1f}" y="{y + 1}" width="{width:.1f}" height="14" rx="2"/>'
            f'<text class="tick" x="{left + width + 6:.1f}" y="{y + 12}">{share:.0%}</text>'
        )
    return svg(name, _WIDTH, 16 + 26 * len(ordered), parts)


def rung_chart(rung: Mapping[str, Any]) -> str:
    """The trials that came to a rung by their scores: full where they went on, open where they were stopped."""
    scores = [(trial, score, goes_on) for trial, score, goes_on in rung["trials"] if is_number(score)]
    if not scores:
        raise ValueError("nobody came to this rung")
    x = fit([score for _, score, _ in scores], 10, _WIDTH - 10)
    parts = [f'<path class="axis" d="M{x.start:g} 20H{x.end:g}"/>']
    for tick in x.ticks():
        parts.append(f'<text class="tick x" x="{x(tick):.1f}" y="38">{tick_label(tick)}</text>')
    for trial, score, goes_on in scores:
        title = f"trial {trial}: {score:.4f}, {'went on' if goes_on else 'stopped'}"
        look = "full" if goes_on else "open"
        parts.append(
            f'<circle class="dot {look}" cx="{x(score):.1f}" cy="20" r="4"><title>{title}</title></circle>'
        )
    return svg(f"Rung after epoch {rung['epoch']}", _WIDTH, 46, parts)


def _name(value: Any) -> str:
    if value is None:
        return _ABSENT
    return value if isinstance(value, str) else json.dumps(value)


def _told(row: Row) -> str:
    return "\n".join(f"{name}: {value}" for name, value in row.items() if name not in ("scores", "error"))
