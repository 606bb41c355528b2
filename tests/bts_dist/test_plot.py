import math
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from bts_dist.plot import Dot, Line, Scale, dot_plot, fit, interval_bar, line_chart, strip_plot

values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20)


class Marks(HTMLParser):
    """The start tags of a drawing as (tag, attributes) and the text of each element after its tag."""

    def __init__(self, svg: str) -> None:
        super().__init__()
        self.marks: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[dict[str, str], str]] = []
        self.feed(svg)

    def handle_starttag(self, tag, attrs):
        self.marks.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append((self.marks[-1][1], data))

    def of(self, tag: str, name: str) -> list[dict[str, str]]:
        return [
            attrs for found, attrs in self.marks if found == tag and name in attrs.get("class", "").split()
        ]

    def ticks(self, axis: str) -> list[tuple[float, float]]:
        """(value, pixel) of each tick of an axis; a label's baseline lies 4 px under its y."""
        return [
            (
                float(text.replace("−", "-").replace("\u202f", "")),
                float(attrs[axis]) - (4 if axis == "y" else 0),
            )
            for attrs, text in self.texts
            if attrs.get("class") == f"tick {axis}"
        ]


def read_axis(ticks, pixel: float, log: bool = False) -> float:
    """The value at a pixel as a reader would find it, from the outer two ticks."""
    (low, start), (high, end) = ticks[0], ticks[-1]
    share = (pixel - start) / (end - start)
    return low * (high / low) ** share if log else low + (high - low) * share


def test_scale_maps_its_ends_and_middle():
    assert [Scale(0, 10, 100, 200)(value) for value in (0, 5, 10)] == [100, 150, 200]
    assert Scale(1e-4, 1e-2, 0, 80, log=True)(1e-3) == pytest.approx(40)


@given(values)
def test_fit_holds_its_values_between_few_round_ticks(found):
    scale = fit(found, 0, 100)
    slack = 1e-6 * (scale.high - scale.low)
    assert scale.low - slack <= min(found) <= max(found) <= scale.high + slack
    assert 3 <= len(scale.ticks()) <= 7
    assert scale.ticks()[0] == pytest.approx(scale.low, abs=slack)
    assert scale.ticks()[-1] == pytest.approx(scale.high, abs=slack)


@given(st.floats(1e-6, 1e3), st.floats(1.0, 1e4))
def test_log_ticks_are_round_and_inside(low, ratio):
    scale = fit([low, low * ratio], 0, 100, log=True)
    for tick in scale.ticks():
        assert scale.low <= tick <= scale.high
        assert round(tick / 10 ** math.floor(math.log10(tick) + 1e-9)) in (1, 2, 5)


def test_few_epochs_have_whole_ticks():
    drawn = Marks(line_chart("Loss", [Line("a", [(1, 5), (2, 7), (3, 6)])], "epoch"))
    assert [value for value, _ in drawn.ticks("x")] == [1, 2, 3]


def test_line_chart_points_read_back_as_the_data():
    losses = [(1, 1.31), (2, 0.74), (3, 0.66), (4, 0.402), (7, 0.35)]
    drawn = Marks(line_chart("Loss", [Line("training", losses)], "epoch"))
    (line,) = drawn.of("polyline", "line-0")
    pixels = [tuple(float(part) for part in point.split(",")) for point in line["points"].split()]
    assert len(pixels) == len(losses)
    for (px, py), (epoch, loss) in zip(pixels, losses, strict=True):
        assert read_axis(drawn.ticks("x"), px) == pytest.approx(epoch, abs=0.01)
        assert read_axis(drawn.ticks("y"), py) == pytest.approx(loss, abs=0.003)


def test_line_chart_names_its_lines_and_marks_an_epoch():
    lines = [Line("Dice", [(1, 0.5), (2, 0.7), (3, 0.8)]), Line("IoU", [(2, 0.6)])]
    svg = line_chart("Validation", lines, "epoch", mark=2)
    drawn = Marks(svg)
    assert {"Dice", "IoU", "epoch"} <= {
        text for attrs, text in drawn.texts if "caption" in attrs.get("class", "")
    }
    (mark,) = drawn.of("path", "mark")
    mark_x = float(re.match(r"M([\d.]+) ", mark["d"])[1])
    assert mark_x == pytest.approx(dict(drawn.ticks("x"))[2])
    assert "<title>epoch 2\nDice: 0.7\nIoU: 0.6</title>" in svg


def test_hover_bands_tile_the_chart():
    bands = Marks(line_chart("Loss", [Line("a", [(x, x * x) for x in range(1, 6)])], "epoch")).of(
        "rect", "band"
    )
    edges = [(float(band["x"]), float(band["x"]) + float(band["width"])) for band in bands]
    assert len(edges) == 5
    for (_, right), (left, _) in pairwise(edges):
        assert right == pytest.approx(left, abs=0.11)


def test_a_single_epoch_is_drawn_as_a_dot():
    drawn = Marks(line_chart("Loss", [Line("training", [(1, 0.5)])], "epoch"))
    (point,) = drawn.of("path", "point")
    (line,) = drawn.of("polyline", "line")
    assert point["d"] == f"M{line['points']}h0"


def test_dot_plot_reads_back_on_a_log_axis():
    dots = [Dot(3e-4, 0.71, "a"), Dot(1e-3, 0.86, "b", "best"), Dot(6e-3, 0.62, "c", "open")]
    drawn = Marks(dot_plot("Search", dots, "learning rate", "Dice", log_x=True))
    circles = drawn.of("circle", "dot")
    assert [circle["class"] for circle in circles] == ["dot full", "dot best", "dot open"]
    for circle, dot in zip(circles, dots, strict=True):
        assert read_axis(drawn.ticks("x"), float(circle["cx"]), log=True) == pytest.approx(dot.x, rel=0.01)
        assert read_axis(drawn.ticks("y"), float(circle["cy"])) == pytest.approx(dot.y, abs=0.001)


@example([[5e-324]])
@given(st.lists(st.lists(st.floats(0, 1), max_size=15), min_size=1, max_size=4))
def test_strip_plot_dots_stand_at_their_values_and_never_overlap(groups):
    assume(any(groups))
    named = [(f"g{index}", [(value, str(value)) for value in group]) for index, group in enumerate(groups)]
    drawn = Marks(strip_plot("Dice", named, "Dice"))
    circles = drawn.of("circle", "dot")
    places = [(float(circle["cx"]), float(circle["cy"])) for circle in circles]
    assert len(places) == sum(len(group) for group in groups)
    for index, (x, y) in enumerate(places):
        for other_x, other_y in places[:index]:
            assert math.hypot(x - other_x, y - other_y) >= 7.8
    span = drawn.ticks("x")[-1][0] - drawn.ticks("x")[0][0]
    expected = [value for group in groups for value in sorted(group)]
    for (x, _), value in zip(places, expected, strict=True):
        assert read_axis(drawn.ticks("x"), x) == pytest.approx(value, abs=0.002 * span)


def test_strip_plot_rules_the_median_of_three_or_more():
    groups = [("CS", [(0.5, "a"), (0.9, "b"), (0.8, "c")]), ("DU", [(0.6, "d"), (0.7, "e")])]
    drawn = Marks(strip_plot("Dice", groups, "Dice"))
    (rule,) = drawn.of("path", "median")
    assert read_axis(drawn.ticks("x"), float(re.match(r"M([\d.]+) ", rule["d"])[1])) == pytest.approx(
        0.8, abs=0.001
    )
    assert {"CS", "DU"} == {text for attrs, text in drawn.texts if attrs.get("class") == "row"}


def test_interval_bar_is_to_scale():
    drawn = Marks(interval_bar(0.75, 0.8, 0.9, (0.5, 1.0), 0.83))
    track, interval, target = (drawn.of("path", name)[0]["d"] for name in ("track", "interval", "target"))
    start, end = (float(number) for number in re.match(r"M([\d.]+) 10H([\d.]+)", track).groups())
    places = [float(number) for number in re.match(r"M([\d.]+) 10H([\d.]+)", interval).groups()]
    places += [float(drawn.of("circle", "dot")[0]["cx"]), float(re.match(r"M([\d.]+)", target)[1])]
    assert [0.5 + 0.5 * (x - start) / (end - start) for x in places] == pytest.approx(
        [0.75, 0.9, 0.8, 0.83], abs=0.001
    )
    assert not Marks(interval_bar(0.75, 0.8, 0.9, (0.5, 1.0), None)).of("path", "target")


def test_labels_and_titles_are_escaped():
    hostile = '</title><script>"&'
    drawings = [
        line_chart(hostile, [Line(hostile, [(1, 2), (2, 3)])], hostile),
        dot_plot(hostile, [Dot(1, 2, hostile)], hostile, hostile),
        strip_plot(hostile, [(hostile, [(0.5, hostile)])], hostile),
    ]
    for svg in drawings:
        assert "<script" not in svg
        assert hostile in {text for _, text in Marks(svg).texts}


@pytest.mark.parametrize(
    "draw",
    [
        lambda: line_chart("n", [Line("a", [])], "x"),
        lambda: dot_plot("n", [], "x", "y"),
        lambda: strip_plot("n", [("a", [])], "x"),
    ],
)
def test_nothing_to_draw_is_an_error(draw):
    with pytest.raises(ValueError, match="nothing to draw in 'n'"):
        draw()
