"""W&B's record of a training that is killed and started again reads as one run."""

import signal
from pathlib import Path
from typing import Any

import pytest
from kill_points import Point, run_process
from wandb_log import OfflineRun, read_all

from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.track import read_metrics, wandb_id
from shards.store import LocalStore

EPOCHS, STEPS = 3, 8


@pytest.fixture(scope="module")
def recipe(packed: Path) -> Config:
    return with_overrides(
        Config(),
        {
            "data.shards": str(packed),
            "model.features": 4,
            "model.depth": 2,
            "train.epochs": EPOCHS,
            "train.global_batch": 4,
            "train.precision": "fp32",
            "train.checkpoint_steps": 3,
            "train.log_every": 1,
            "train.threads": 1,
            "track.wandb": "offline",
            "track.overlays": 1,
            "cluster.runtime": "local",
            "cluster.workers": 1,
            "run.name": "killed",
        },
    )


def logs(root: Path) -> list[OfflineRun]:
    return read_all(root, wandb_id(LocalStore("", root)))


def rows_by_step(root: Path) -> dict[int, dict[str, Any]]:
    """What ``metrics.jsonl`` says of each step, under W&B's names."""
    by_step: dict[int, dict[str, Any]] = {}
    for row in read_metrics(LocalStore("", root)):
        if row["kind"] in ("step", "epoch"):
            prefix = "step/" if row["kind"] == "step" else ""
            values = {f"{prefix}{k}": v for k, v in row.items() if k not in ("kind", "step", "time")}
            by_step.setdefault(row["step"], {}).update(values, _timestamp=row["time"])
    return by_step


def test_a_killed_run_is_one_record(recipe: Config, tmp_path: Path) -> None:
    points = [
        Point("report", 1, written=True),  # a checkpoint whose rows are not handed over
        Point("step", 7, written=True),  # rows that no checkpoint covers
        Point("after upload", 1),  # rows handed over that W&B has not written
    ]
    for point in points:
        assert run_process(recipe, tmp_path, point) == -signal.SIGKILL, "it never came by"
    assert run_process(recipe, tmp_path, None) == 0

    expected = rows_by_step(tmp_path)
    assert list(expected) == list(range(1, EPOCHS * STEPS + 1))
    given = [row for log in logs(tmp_path) for row in log.history]
    assert [row["_step"] for row in given] == list(expected)
    for row in given:
        mine = expected[row["_step"]]
        assert {name: row[name] for name in mine} == pytest.approx(mine)
    assert sum("val/dice/patient" in row for row in given) == EPOCHS
    assert any("recovery/down_s" in row for row in given)
    # Otherwise nothing was continued, and nothing shown.
    assert sum(bool(log.history) for log in logs(tmp_path)) >= 2
