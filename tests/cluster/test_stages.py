import re

import numpy as np
import pytest
from rich.console import Console

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
    assert "Held-out test patients, step-8 (epoch 1), threshold 0.5" in text
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
