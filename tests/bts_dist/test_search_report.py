"""A search's page is whole, self-contained and says what was gained and spent."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_report import Page

from bts_dist.search_charts import bars, learning_curves, parallel_coordinates
from bts_dist.search_report import SearchRecord, write_search_page

RESULT = "val/dice/patient"


def row(trial: int, lr: float, ema: float | None, scores: list[float], status: str) -> dict[str, Any]:
    settings = {"optim.lr": lr, "optim.ema": ema, "schedule.kind": "step" if trial % 2 else "cosine"}
    cost = {"epochs": len(scores), "seconds": 60.0 * len(scores), "error": None, "scores": scores}
    return {"trial": trial, **settings, RESULT: max(scores, default=None), "status": status, **cost}


@pytest.fixture
def search() -> SearchRecord:
    rows = [
        row(0, 1e-3, None, [0.5, 0.6, 0.7, 0.71], "finished"),
        row(1, 1e-2, 0.9, [0.6, 0.7, 0.8, 0.79], "finished"),
        row(2, 1e-1, 0.99, [0.2], "stopped"),
        row(3, 3e-1, 0.99, [], "failed") | {"error": "the loss is <nan>"},
    ]
    return SearchRecord(
        name="lgg",
        how="4 trials, searcher random",
        result=RESULT,
        keys=["optim.lr", "optim.ema", "schedule.kind"],
        logs=frozenset({"optim.lr"}),
        epochs=4,
        rows=rows,
        best=1,
        rungs=[{"bracket": None, "epoch": 1, "trials": [(0, 0.5, True), (1, 0.6, True), (2, 0.2, False)]}],
        importance={"optim.lr": 0.8, "optim.ema": 0.2},
        method="By some method.",
        best_yaml="optim:\n  lr: 0.01\n",
    )


def written(search: SearchRecord, folder: Path) -> str:
    return write_search_page(search, folder / "new" / "search.html").read_text(encoding="utf-8")


def test_gain_budget_and_rungs_are_told(search: SearchRecord, tmp_path: Path) -> None:
    html = written(search, tmp_path)
    page = Page(html)
    assert page.text("div").count("0.8000") == 1
    assert "The search gained 0.0900" in page.text("div")
    text = " ".join(page.text("p"))
    # Nine of sixteen epochs; the failed trial's are not saved ones.
    assert re.search(r">9<span[^>]*> / 16<", html)
    assert "3 epochs (19 %) saved by stopping 1 of 4 trials; 9.0 minutes" in text
    assert "Trial 3 failed: the loss is <nan>" in text
    assert "After epoch 1: 2 of 3 went on" in page.text("h3")
    assert "By some method." in text
    assert search.best_yaml.strip() in page.text("pre")


def test_a_search_without_a_gain_says_so(search: SearchRecord, tmp_path: Path) -> None:
    page = Page(written(replace(search, best=0), tmp_path))
    assert "The search found nothing better" in page.text("div")


def test_what_was_confirmed_on_test_patients_is_told(search: SearchRecord, tmp_path: Path) -> None:
    arm = {"mean": 0.8, "low": 0.79, "high": 0.82}
    found = {
        "seeds": [1, 2],
        "winner": 1,
        "metrics": {"dice/patient": {"default": arm, "best": arm | {"mean": 0.81}, "difference": 0.01}},
        "interval": {"metric": "dice/patient", "low": -0.02, "high": 0.04, "patients": 9},
        "runs": [
            {"arm": name, "trial": 0, "seed": seed, "dice/patient": 0.8 + seed / 100}
            for name in ("default", "best")
            for seed in (1, 2)
        ],
    }
    html = written(replace(search, confirmation=found), tmp_path)
    page = Page(html)
    assert (page.faults, page.open) == ([], [])
    text = " ".join(" ".join(page.text("p")).split())
    assert "with 2 fresh seeds and scored once on 9 test patients. dice/patient differs by 0.0100" in text
    assert "these patients do not tell the two apart" in text
    assert "test patients were not opened" not in text
    better = {**found, "interval": found["interval"] | {"low": 0.001}}
    assert "the best config is better" in written(replace(search, confirmation=better), tmp_path)
    assert "test patients were not opened" in written(search, tmp_path)


def test_cost_is_drawn_beside_the_result(search: SearchRecord, tmp_path: Path) -> None:
    rows = [row | {"cost": 10 * (row["trial"] + 1), "pareto": row["trial"] < 2} for row in search.rows]
    html = written(replace(search, cost="operations to train on a slice", rows=rows), tmp_path)
    page = Page(html)
    assert (page.faults, page.open) == ([], [])
    assert "Score against cost" in page.text("h2")
    assert html.count("<circle") > written(search, tmp_path).count("<circle")


def test_the_page_is_well_formed_and_refers_to_nothing(search: SearchRecord, tmp_path: Path) -> None:
    html = written(search, tmp_path)
    page = Page(html)
    assert page.faults == []
    assert page.open == []
    assert not re.search(r"https?://|url\(|@import|<script [^>]*src", html)


def test_trials_come_best_first(search: SearchRecord, tmp_path: Path) -> None:
    cells = Page(written(search, tmp_path)).text("td")
    assert cells[0] == "1"
    assert [c for c in cells if c in ("finished", "stopped", "failed")] == [
        "finished",
        "finished",
        "stopped",
        "failed",
    ]


def test_tables_sort_by_what_their_cells_are_worth(search: SearchRecord, tmp_path: Path) -> None:
    rows = [row | {"mirror": bool(row["trial"] % 2)} for row in search.rows]
    html = written(replace(search, rows=rows, keys=[*search.keys, "mirror"]), tmp_path)
    page = Page(html)
    assert 'querySelectorAll("table")' in "".join(page.text("script"))
    assert "script-src 'unsafe-inline'" in html
    heads = [attributes for tag, attributes in page.elements if tag == "th" and attributes["scope"] == "col"]
    assert [head.get("aria-sort") for head in heads].count("descending") == 1
    values = [attributes.get("data-v") for tag, attributes in page.elements if tag == "td"]
    width = len(values) // 4
    best = values[:width]
    # Numbers as they are, not as they are shown; words, truths and what is not known have none.
    assert best[:2] == ["1", "0.01"]
    assert best[2:6] == ["0.9", None, None, "0.8"]
    assert values[width : 2 * width][:4] == ["0", "0.001", None, None]


def test_each_trial_with_a_result_is_a_line_and_the_best_is_on_top(search: SearchRecord) -> None:
    svg = parallel_coordinates(search.rows, search.keys, RESULT, search.logs)
    lines = re.findall(r'<polyline class="trial (\w*)"', svg)
    assert lines == ["", "zero", "best"]
    points = re.findall(r'points="([^"]+)"', svg)
    assert all(len(line.split()) == 4 for line in points)
    # By its logarithm a tenth is as far from a hundredth as that from a thousandth.
    height = [float(line.split()[0].split(",")[1]) for line in points]
    assert height[0] - height[2] == pytest.approx(height[2] - height[1], abs=0.3)


def test_curves_end_open_where_a_trial_was_stopped(search: SearchRecord) -> None:
    svg = learning_curves(search.rows, 1, RESULT)
    assert re.findall(r'<circle class="dot (\w+)"', svg) == ["open", "full", "best"]


def test_bars_are_as_long_as_their_shares() -> None:
    svg = bars("x", [("a", 0.2), ("b", 0.8)])
    widths = [float(w) for w in re.findall(r'<rect[^>]*width="([\d.]+)"', svg)]
    assert widths[0] == pytest.approx(4 * widths[1], rel=0.01)
    assert svg.index(">b<") < svg.index(">a<")


def test_nothing_to_draw_is_an_error() -> None:
    rows = [row(0, 1e-3, None, [], "failed")]
    with pytest.raises(ValueError, match="no trial has"):
        parallel_coordinates(rows, ["optim.lr"], RESULT, frozenset())
    with pytest.raises(ValueError, match="no trial has"):
        learning_curves(rows, 0, RESULT)
