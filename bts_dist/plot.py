"""Small charts as SVG text.

Pure functions of their data.  Colours and type come from the page's style sheet by class name.  Dots, and
bands over the lines of a chart, carry a ``<title>``, which browsers show on hover.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import product
from statistics import median
from typing import Literal

_WIDTH, _HEIGHT = 440, 280
_LINES_WIDTH, _LINES_HEIGHT = 340, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 30, 40
_RADIUS = 4.0
_CHAR_PX = 6.0  # Mean advance of a character of a label, enough to place its neighbour.


@dataclass(frozen=True)
class Scale:
    """A map from data, ``low`` to ``high``, to pixels, ``start`` to ``end``; by logarithm when ``log``.

    ``step`` is the distance of its ticks; None finds a round one.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    step: float | None = None

    def __call__(self, value: float) -> float:
        low, high, value = (
            (math.log10(v) for v in (self.low, self.high, value))
            if self.log
            else (self.low, self.high, value)
        )
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """Round values inside the domain: multiples of a 1-2-5 step, or 1-2-5 times powers of ten.

        A logarithmic domain of more than two decades has the powers of ten alone.
        """
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            digits = (1, 2, 5) if self.high <= 100 * self.low else (1,)
            rounds = (digit * 10.0**power for power, digit in product(powers, digits))
            return [value for value in rounds if self.low <= value <= self.high]
        step = self.step or _round_step((self.high - self.low) / 4)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def fit(values: Iterable[float], start: float, end: float, *, log: bool = False) -> Scale:
    """The scale whose domain is the values' range, widened to round ends (by a quarter when ``log``)."""
    values = list(values)
    low, high = min(values), max(values)
    if log:
        return Scale(low / 1.25, high * 1.25, start, end, log=True)
    size = max(abs(low), abs(high))
    # Below this there is nothing to see, and steps between labels would underflow.
    if high - low <= max(1e-9 * size, 1e-12):
        half = size / 2 if size > 1e-12 else 0.5
        low, high = low - half, high + half
    step = _round_step((high - low) / 4)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return Scale(low, high, start, end, step=step)


@dataclass(frozen=True)
class Line:
    label: str
    points: Sequence[tuple[float, float]]


Look = Literal["full", "open", "best"]


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    title: str
    look: Look = "full"


def line_chart(name: str, lines: Sequence[Line], x_label: str, *, mark: float | None = None) -> str:
    """Lines over a shared x that counts something, such as epochs, with a legend and a rule at ``mark``.

    Raises:
        ValueError: no line has a point.
    """
    points = [point for line in lines for point in line.points]
    if not points:
        raise ValueError(f"nothing to draw in {name!r}")
    first, last = min(points)[0], max(max(points)[0], min(points)[0] + 1)
    x = Scale(first, last, _LEFT, _LINES_WIDTH - _RIGHT, step=max(1.0, _round_step((last - first) / 4)))
    y = fit((y for _, y in points), _LINES_HEIGHT - _BOTTOM, _TOP)
    parts = [axes(x, y, x_label)]
    if mark is not None:
        parts.append(f'<path class="mark" d="M{x(mark):.1f} {y.end:g}V{y.start:g}"/>')
    for index, line in enumerate(lines):
        path = " ".join(f"{x(px):.1f},{y(py):.1f}" for px, py in line.points)
        parts.append(f'<polyline class="line line-{index}" points="{path}"/>')
        if len(line.points) == 1:
            parts.append(f'<path class="line line-{index} point" d="M{path}h0"/>')
    parts += [legend([line.label for line in lines]), hover_bands(lines, x, y, x_label)]
    return svg(name, _LINES_WIDTH, _LINES_HEIGHT, parts)


def dot_plot(name: str, dots: Sequence[Dot], x_label: str, y_label: str, *, log_x: bool = False) -> str:
    """One dot an observation, y's name above the axis.

    Raises:
        ValueError: there are no dots.
    """
    if not dots:
        raise ValueError(f"nothing to draw in {name!r}")
    x = fit((dot.x for dot in dots), _LEFT, _WIDTH - _RIGHT, log=log_x)
    y = fit((dot.y for dot in dots), _HEIGHT - _BOTTOM, _TOP)
    caption = f'<text class="caption" x="{_LEFT}" y="14">{escape(y_label)}</text>'
    circles = [_circle(x(dot.x), y(dot.y), dot) for dot in dots]
    return svg(name, _WIDTH, _HEIGHT, [axes(x, y, x_label), caption, *circles])


def strip_plot(name: str, groups: Sequence[tuple[str, Sequence[tuple[float, str]]]], x_label: str) -> str:
    """A row of (value, title) dots for each group, spread where they would overlap.

    A rule marks the median of a group of three or more.

    Raises:
        ValueError: no group has a value.
    """
    values = [value for _, dots in groups for value, _ in dots]
    if not values:
        raise ValueError(f"nothing to draw in {name!r}")
    left = _LEFT + _CHAR_PX * max(0, max(len(label) for label, _ in groups) - 5)
    x = fit(values, left, _WIDTH - _RIGHT)
    parts, top = [], 12.0
    for label, dots in groups:
        ordered = sorted(dots)
        lanes = _lanes([x(value) for value, _ in ordered])
        row = 22 + 2 * _RADIUS * (1 + max(lanes, default=0) - min(lanes, default=0))
        middle = top + 11 - 2 * _RADIUS * min(lanes, default=0) + _RADIUS
        parts.append(f'<text class="row" x="0" y="{middle + 4:.1f}">{escape(label)}</text>')
        for lane, (value, title) in zip(lanes, ordered, strict=True):
            parts.append(_circle(x(value), middle + 2 * _RADIUS * lane, Dot(value, 0, title)))
        if len(ordered) > 2:
            place = x(median([value for value, _ in ordered]))
            parts.append(f'<path class="median" d="M{place:.1f} {top + 4:.1f}V{top + row - 4:.1f}"/>')
        top += row
    return svg(name, _WIDTH, top + _BOTTOM, [x_axis(x, 8, top, x_label), *parts])


def interval_bar(
    low: float, middle: float, high: float, domain: tuple[float, float], target: float | None
) -> str:
    """A thin track over ``domain``: the interval as a bar, its middle as a dot, the target as a tick."""
    x = Scale(*domain, _RADIUS, 160 - _RADIUS)
    tick = "" if target is None else f'<path class="target" d="M{x(target):.1f} 2V18"/>'
    title = f"{middle:.3f}, interval {low:.3f} to {high:.3f}, on an axis from {domain[0]:g} to {domain[1]:g}"
    return (
        f'<svg class="bar" viewBox="0 0 160 20" role="img"><title>{title}</title>'
        f'<path class="track" d="M{_RADIUS} 10H{160 - _RADIUS}"/>'
        f'<path class="interval" d="M{x(low):.1f} 10H{x(high):.1f}"/>{tick}'
        f'<circle class="dot" cx="{x(middle):.1f}" cy="10" r="{_RADIUS}"/></svg>'
    )


def axes(x: Scale, y: Scale, x_label: str) -> str:
    """The x axis, and a horizontal grid line with its label at each tick of y."""
    rules = "".join(
        f'<path class="grid" d="M{x.start:g} {y(tick):.1f}H{x.end:g}"/>'
        f'<text class="tick y" x="{x.start - 8:g}" y="{y(tick) + 4:.1f}">{tick_label(tick)}</text>'
        for tick in y.ticks()
    )
    return rules + x_axis(x, None, y.start, x_label)


def x_axis(x: Scale, grid_top: float | None, bottom: float, label: str) -> str:
    """Ticks under the line ``bottom``, grid lines up to ``grid_top`` if any, and the axis' name."""
    parts = [f'<path class="axis" d="M{x.start:g} {bottom:.1f}H{x.end:g}"/>']
    for tick in x.ticks():
        if grid_top is not None:
            parts.append(f'<path class="grid" d="M{x(tick):.1f} {grid_top:.1f}V{bottom:.1f}"/>')
        parts.append(
            f'<text class="tick x" x="{x(tick):.1f}" y="{bottom + 16:.1f}">{tick_label(tick)}</text>'
        )
    middle = (x.start + x.end) / 2
    parts.append(f'<text class="caption x" x="{middle:.1f}" y="{bottom + 34:.1f}">{escape(label)}</text>')
    return "".join(parts)


def legend(labels: Sequence[str]) -> str:
    parts, left = [], 0.0
    for index, label in enumerate(labels):
        parts.append(f'<path class="line line-{index}" d="M{left:.1f} 10h12"/>')
        parts.append(f'<text class="caption" x="{left + 17:.1f}" y="14">{escape(label)}</text>')
        left += 30 + _CHAR_PX * len(label)
    return "".join(parts)


def hover_bands(lines: Sequence[Line], x: Scale, y: Scale, x_label: str) -> str:
    """An invisible band around each x whose title lists every line's value there."""
    places = sorted({px for line in lines for px, _ in line.points})
    width = (x.end - x.start) / max(len(places) - 1, 1)
    bands = []
    for place in places:
        values = [f"{line.label}: {py:.4g}" for line in lines for px, py in line.points if px == place]
        title = escape("\n".join([f"{x_label} {place:g}", *values]))
        left = max(x(place) - width / 2, x.start)
        right = min(x(place) + width / 2, x.end)
        bands.append(
            f'<rect class="band" x="{left:.1f}" y="{y.end:g}" width="{right - left:.1f}" '
            f'height="{y.start - y.end:g}"><title>{title}</title></rect>'
        )
    return "".join(bands)


def _circle(x: float, y: float, dot: Dot) -> str:
    circle = f'<circle class="dot {dot.look}" cx="{x:.1f}" cy="{y:.1f}" r="{_RADIUS}">'
    return f"{circle}<title>{escape(dot.title)}</title></circle>"


def svg(name: str, width: float, height: float, parts: Iterable[str]) -> str:
    box = f'viewBox="0 0 {width:g} {height:.0f}"'
    return f'<svg class="chart" {box} role="img" aria-label="{escape(name)}">{"".join(parts)}</svg>'


def _lanes(places: Sequence[float]) -> list[int]:
    """For dots at ascending pixel places, the nearest lane to 0 where each touches no dot before it."""
    nearest_first = sorted(range(-len(places), len(places) + 1), key=lambda lane: (abs(lane), lane))
    last: dict[int, float] = {}
    lanes = []
    for place in places:
        free = (lane for lane in nearest_first if place - last.get(lane, -math.inf) >= 2 * _RADIUS)
        lane = next(free)
        last[lane] = place
        lanes.append(lane)
    return lanes


def _round_step(step: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below ``step``."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= step * (1 - 1e-9))


def tick_label(value: float) -> str:
    return f"{value:,.6g}".replace("-", "−").replace(",", "\N{NARROW NO-BREAK SPACE}")
