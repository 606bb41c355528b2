"""What was chosen on validation patients, as a page shows it."""

import html
import re
from typing import Any

import pytest
from pages import Page, run_record, with_score, written

from bts_dist.choice_tables import fold_choices
from bts_dist.report import RunRecord


@pytest.fixture
def run() -> RunRecord:
    return run_record()


def test_what_was_chosen_on_validation_patients_is_a_table(run: RunRecord, tmp_path) -> None:
    rows = [
        {"choice": "mirror", "from": "not mirrored", "to": "mirrored", "dice/patient": 0.81, "gain": -0.0123}
        | {"low": -0.03, "high": 0.01, "taken": False},
        {"choice": "components", "from": "all", "to": "largest", "dice/patient": 0.83, "gain": 0.0077}
        | {"low": 0.0, "high": 0.02, "taken": True},
    ]
    found = {
        "threshold": 0.4,
        "mirror": False,
        "components": "largest",
        "members": [{"uri": "x", "id": "0"}],
        "patients": 9,
    }
    page = written(with_score(run, inference={**found, "rows": rows}), tmp_path)
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).replace("\u200a", " ").split())
    assert "How it predicts" in text
    assert "Threshold 0.4, not mirrored, mean of 2 checkpoints, largest component only" in text
    assert "mirror not mirrored mirrored 0.8100 −0.0123 −0.0300 – 0.0100 no" in text
    assert "components all largest 0.8300 0.0077 0.0000 – 0.0200 yes" in text
    few = [row | {"low": None, "high": None} for row in rows]
    assert "—" in written(with_score(run, inference={**found, "rows": few}), tmp_path)
    assert "How it predicts" not in written(run, tmp_path)
    assert "How it predicts" not in written(with_score(run, inference={**found, "rows": []}), tmp_path)


def choice(name: str, before: str, after: str, gain: float, *, taken: bool) -> dict[str, Any]:
    return {"choice": name, "from": before, "to": after, "gain": gain, "taken": taken}


def chosen(fold: int, start: float, end: float, *rows: dict[str, Any]) -> dict[str, Any]:
    found = {"patients": 9, "start": {"label": "x", "dice/patient": start}, "dice/patient": end}
    return {"fold": fold, "inference": {"threshold": 0.4, **found, "rows": list(rows)}}


FOLDS = [
    chosen(
        0,
        0.8,
        0.8125,
        choice("mirror", "not mirrored", "mirrored", 0.0125, taken=True),
        choice("threshold", "0.5", "0.4", -0.002, taken=False),
    ),
    chosen(
        1,
        0.7,
        0.703,
        choice("mirror", "not mirrored", "mirrored", -0.01, taken=False),
        choice("ensemble", "one checkpoint", "2 checkpoints", 0.0005, taken=False),
        choice("threshold", "0.5", "0.3", 0.003, taken=True),
    ),
    {"fold": 2, "inference": {"threshold": 0.5, "mirror": True, "components": "all", "members": []}},
]


def test_each_folds_choices_stand_side_by_side() -> None:
    found = fold_choices(FOLDS)
    assert found is not None
    assert found["names"] == ["mirror", "threshold", "ensemble"]
    cells = [[(cell["value"], cell["gain"]) for cell in row["cells"]] for row in found["rows"]]
    nothing = (None, None)
    assert cells == [
        [("mirrored", 0.0125), ("0.5", None), nothing],
        [("not mirrored", None), ("0.3", 0.003), ("one checkpoint", None)],
        [nothing] * 3,
    ]
    assert [row["cells"][1]["number"] for row in found["rows"]] == [0.5, 0.3, None]
    assert [row["gain"] for row in found["rows"]] == [pytest.approx(0.0125), pytest.approx(0.003), None]


def test_where_no_fold_chose_there_is_no_table() -> None:
    assert fold_choices([]) is None
    assert fold_choices([FOLDS[2], {"fold": 0}]) is None


def test_a_cross_validations_page_has_the_choices_of_each_fold(run: RunRecord, tmp_path) -> None:
    words = "each fold in its own way: thresholds 0.3 – 0.5, mirrored in 2 of 3"
    text = written(with_score(run, folds=FOLDS, predicts=words), tmp_path)
    page = Page(text)
    assert page.faults == []
    assert "How each fold predicts" in page.text("h2")
    assert any(p.startswith("Each fold in its own way: thresholds 0.3 – 0.5") for p in page.text("p"))
    plain = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())
    assert "0 9 mirrored +0.0125 0.5 — 0.8000 0.8125 0.0125" in plain
    assert "1 9 not mirrored 0.3 +0.0030 one checkpoint 0.7000 0.7030 0.0030" in plain
    assert words in page.text("dd")
    assert "How each fold predicts" not in written(with_score(run, folds=FOLDS[2:]), tmp_path)
