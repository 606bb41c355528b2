"""The benchmark of searches: the arithmetic of its page."""

from pathlib import Path
from typing import Any

import pytest

from cluster.tune_ledger import METRIC


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))


def row(trial: int, scores: list[float], status: str = "finished") -> dict[str, Any]:
    best = max(scores, default=None)
    own = {"trial": trial, "optim.lr": 0.00123, "optim.ema": None, METRIC: best}
    return {**own, "epochs": len(scores), "status": status, "scores": scores}


def test_the_page_tells_best_budget_and_confirmation() -> None:
    import search as benchmark

    asha = benchmark.Searched(
        "asha",
        [row(0, [0.5, 0.6]), row(1, [0.4], "stopped"), row(2, [0.7, 0.65]), row(3, [0.9], "failed")],
        90.0,
    )
    random = benchmark.Searched("random", [row(0, [0.5, 0.6]), row(1, [0.62, 0.64])], 120.0)
    assert (asha.epochs, asha.best["trial"], random.epochs) == (6, 2, 4)
    arm = {"mean": 0.8, "low": 0.79, "high": 0.82}
    confirmed = {
        "winner": 2,
        "seeds": [1, 2, 3],
        "metrics": {"dice/patient": {"default": arm, "best": arm | {"mean": 0.81}, "difference": 0.01}},
        "interval": {"metric": "dice/patient", "low": -0.02, "high": 0.04, "patients": 9},
    }
    page = benchmark.page(asha, random, confirmed, 2)
    assert "| asha | 4 | 6 | 1.5 | 0.7000 | 2 |" in page
    assert "| random | 2 | 4 | 2.0 | 0.6400 | 1 |" in page
    assert "2 epochs: val/dice/patient 0.6000, which is trial 0 of both" in page
    assert "| 1 | optim.lr 0.00123 | 0.400 | stopped |" in page
    assert "| dice/patient | 0.8000 | 0.7900 – 0.8200 | 0.8100 | 0.7900 – 0.8200 | +0.0100 |" in page
    assert "of -0.0200 to +0.0400" in page
    assert "Confirmation" not in benchmark.page(asha, random, None, 2)
