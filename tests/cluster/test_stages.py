import re

import numpy as np
import pytest
from rich.console import Console

from bts_dist.cohort import Cohort, compare
from bts_dist.config import ScoreConfig
from bts_dist.evaluation import evaluate, result
from cluster import console
from cluster.stages import show_scores
from shards.meta import Facts


def printed(monkeypatch: pytest.MonkeyPatch, shown: dict[str, object]) -> str:
    out = Console(width=console.PLAIN_WIDTH, record=True, soft_wrap=True, highlight=False, quiet=False)
    monkeypatch.setattr(console, "out", out)
    show_scores(shown)
    return out.export_text()


def scored(*dice: float) -> dict[str, object]:
    """A result of patients who have ten tumour pixels, of which a share is found."""
    settings = ScoreConfig(bootstrap=100)
    evaluations = []
    for number, share in enumerate(dice):
        truth = np.zeros((1, 8, 8), bool)
        truth[0, 0:2, 0:5] = True
        probability = np.where(np.arange(64).reshape(truth.shape) % 8 < 5 * share, truth, 0).astype(
            np.float32
        )
        evaluations.append(
            evaluate(f"P{number}", "CS", Facts((), None), probability, probability > 0.5, truth, settings)
        )
    return result(evaluations, settings) | {"checkpoint": "step-8 (epoch 1)", "threshold": 0.5}


def test_scores_are_shown_with_units_subgroups_and_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(monkeypatch, scored(1.0, 0.6))
    assert "Held-out test patients, step-8 (epoch 1): threshold 0.5" in text
    lines = {line.split("│")[1].strip(): line for line in text.splitlines() if line.count("│") > 2}
    assert re.search(r"│ 0\.8750 +│ 0\.8750 +│ 0\.7500 – 1\.0000 +│ +│ 2 ", lines["dice/patient"])
    assert "│ px " in lines["hd95/patient"]
    assert "│ at 2 px " in lines["surface_dice/patient"]
    # Two patients are too few for an interval of their own.
    assert re.search(r"│ 0\.8750 +│ 0\.8750 │ – +│ 2 ", lines["institution CS"])
    assert re.search(
        r"Calibration, near voxels: expected error 0\.\d{4} \(0\.\d{4} – 0\.\d{4}\), Brier score", text
    )


def test_a_region_without_voxels_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = scored(1.0)
    shown["calibration"] = {"all": None, "near": None}
    assert "Calibration" not in printed(monkeypatch, shown)


def test_a_score_of_patients_seen_in_training_says_that_it_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "LEAK" not in printed(monkeypatch, scored(1.0))
    text = printed(
        monkeypatch, scored(1.0) | {"leak": "slices of these patients were trained on: not a result"}
    )
    assert "LEAK  slices of these patients were trained on: not a result" in text
    assert "Test slices of patients seen in training, step-8 (epoch 1)" in text
    assert "Held-out" not in text


def test_what_differs_from_the_training_patients_stands_beside_the_scores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here, there = (Cohort(2, 8, 8, {site: 2}, {}) for site in ("CS", "XX"))
    text = printed(monkeypatch, scored(1.0) | {"differs": compare(here, there)})
    assert "What differs from the training patients" in text
    assert re.search(r"│ institutions +│ CS 2 +│ XX 2 +│ 2 patients from unseen ones │ large +│", text)
    assert "Rule: large: the means over patients are more than 0.5 standard deviations apart" in text
    text = printed(monkeypatch, scored(1.0) | {"differs": compare(None, there)})
    assert re.search(r"│ institutions +│ unknown +│ XX 2 +│ –", text)
    assert "Not compared: this checkpoint does not say" in text
