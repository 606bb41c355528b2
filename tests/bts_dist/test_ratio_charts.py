"""Reliability and thresholds are drawn where a score has them."""

import re

import pytest

from bts_dist.ratio_charts import reliability_chart, threshold_chart


def bin_(probability: float | None, share: float | None, voxels: int) -> dict[str, object]:
    return {"voxels": voxels, "mean_probability": probability, "tumour_share": share}


def dots(chart: str) -> list[tuple[float, float]]:
    found = re.findall(r'<circle class="bin bin-\d" cx="([\d.]+)" cy="([\d.]+)"', chart)
    return [(float(x), float(y)) for x, y in found]


def test_bins_on_the_diagonal_lie_on_it() -> None:
    bins = [bin_(0.0, 0.0, 9000), bin_(None, None, 0), bin_(0.5, 0.5, 40), bin_(1.0, 1.0, 20)]
    ((title, chart),) = reliability_chart({"all": {"bins": bins}, "near": None})
    assert title == "Share that is tumour"
    x0, y0, x1, y1 = map(float, re.findall(r'class="mark" d="M(.+?) (.+?)L(.+?) (.+?)"', chart)[0])
    places = dots(chart)
    assert places == [(x0, y0), ((x0 + x1) / 2, (y0 + y1) / 2), (x1, y1)]
    assert "of 9,000 voxels at 0.000, 0.000 are tumour" in chart


def test_each_region_is_a_line() -> None:
    bins = [bin_(0.2, 0.4, 10), bin_(0.7, 0.5, 10)]
    ((_, chart),) = reliability_chart({"all": {"bins": bins}, "near": {"bins": bins}})
    assert len(dots(chart)) == 4
    assert "every voxel</text>" in chart
    assert "near a tumour</text>" in chart


def test_hostile_regions_stay_text() -> None:
    ((_, chart),) = reliability_chart({"<script>": {"bins": [bin_(0.2, 0.4, 10)]}})
    assert "<script>" not in chart


@pytest.mark.parametrize("calibration", [{}, {"all": None}, {"all": {"bins": [bin_(None, None, 0)]}}])
def test_without_voxels_there_is_no_curve(calibration: dict[str, object]) -> None:
    assert reliability_chart(calibration) == []


def test_scores_by_threshold_with_a_rule_at_the_chosen_one() -> None:
    rows = [
        {"threshold": 0.25, "dice/patient": 0.5, "precision/pooled": 0.25, "sensitivity/pooled": 1.0},
        {"threshold": 0.75, "dice/patient": 0.5, "precision/pooled": None, "sensitivity/pooled": 0.0},
    ]
    ((_, chart),) = threshold_chart(rows, 0.25)
    lines = [line.split() for line in re.findall(r'<polyline class="line line-\d" points="([^"]+)"', chart)]
    assert [len(line) for line in lines] == [2, 1, 2]
    rule = re.findall(r'class="mark" d="M([\d.]+) ', chart)
    assert rule == [lines[0][0].split(",")[0]]
    assert "mark" not in threshold_chart(rows, None)[0][1]
    assert threshold_chart([], 0.5) == []
