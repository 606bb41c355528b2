"""Training that is killed and started again ends as if nothing had happened: bit for bit."""

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from kill_points import Point, run_process

from bts_dist import checkpoint
from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.track import read_metrics
from shards.store import LocalStore

EPOCHS, STEPS = 3, 8
WEIGHTS = ("model.safetensors", "ema.safetensors", "optim.safetensors")
SHORT = 6
"""Points that are tried in every test run; ``make faults`` tries all."""


def drawn_points() -> list[list[Point]]:
    """At which points a run is killed, one after another; drawn once, from all there are."""
    draw = random.Random(4)
    singles = [
        *(Point("step", at) for at in draw.sample(range(1, EPOCHS * STEPS + 1), 8)),
        *(Point("validation", at) for at in draw.sample(range(1, 3 * EPOCHS + 1), 3)),
        *(Point("upload", at) for at in draw.sample(range(1, 36), 6)),
        *(Point("after upload", at) for at in draw.sample(range(1, 7), 2)),
        *(Point("pruning", at) for at in draw.sample(range(1, 12), 2)),
        *(Point("report", at) for at in (1, 3)),
    ]
    twice = [[Point("step", 5), Point("step", 2)], [Point("upload", 9), Point("upload", 1)]]
    points = [
        *([point] for point in singles),
        *twice,
        [Point("report", 1), Point("validation", 1), Point("step", 3)],
    ]
    draw.shuffle(points)
    return points


POINTS = drawn_points() if os.environ.get("BTS_ALL_FAULTS") else drawn_points()[:SHORT]


@pytest.fixture(scope="module")
def recipe(packed: Path) -> Config:
    """Everything that has a state: an average, running statistics, moments, a schedule that looks back, dropout."""
    return with_overrides(
        Config(),
        {
            "data.shards": str(packed),
            "model.features": 4,
            "model.depth": 2,
            "model.norm": "batch",
            "model.dropout": 0.1,
            "optim.ema": 0.8,
            "optim.lr": 1e-2,
            "schedule": {"kind": "plateau", "patience": 0},
            "train.epochs": EPOCHS,
            "train.global_batch": 4,
            "train.precision": "fp32",
            "train.checkpoint_steps": 3,
            "train.log_every": 1,
            "train.threads": 1,
            "track.wandb": "disabled",
            "cluster.runtime": "local",
            "cluster.workers": 1,
            "run.name": "killed",
        },
    )


@pytest.fixture(scope="module")
def whole(recipe: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody disturbed."""
    root = tmp_path_factory.mktemp("whole")
    assert run_process(recipe, root, None) == 0
    return root


def newest(root: Path) -> Path:
    return root / "checkpoints" / checkpoint.names(LocalStore("", root))[0]


def rows(root: Path) -> list[dict[str, Any]]:
    """The record without what depends on the clock."""
    timed = ("time", "samples_per_s", "share", "straggler", "flops", "peak", "mfu", "system")
    return [
        {key: value for key, value in row.items() if not key.startswith(timed)}
        for row in read_metrics(LocalStore("", root))
        if row["kind"] not in ("note", "recovery")
    ]


def state(root: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((newest(root) / "state.json").read_text())
    record["progress"]["best"] = checkpoint.step_of(record["progress"]["best"])
    del record["progress"]["wandb_id"]
    return record


@pytest.mark.parametrize("points", POINTS, ids=lambda points: ", then ".join(map(str, points)))
def test_a_killed_run_ends_bit_for_bit_like_an_undisturbed_one(
    recipe: Config, whole: Path, tmp_path: Path, points: list[Point]
) -> None:
    for point in points:
        assert run_process(recipe, tmp_path, point) == -signal.SIGKILL, "it never came by"
    assert run_process(recipe, tmp_path, None) == 0
    for name in WEIGHTS:
        assert (newest(tmp_path) / name).read_bytes() == (newest(whole) / name).read_bytes(), name
    assert state(tmp_path) == state(whole)
    assert rows(tmp_path) == rows(whole)


def test_the_undisturbed_run_did_what_is_compared(whole: Path, recipe: Config) -> None:
    kinds = [row["kind"] for row in rows(whole)]
    assert kinds.count("epoch") == EPOCHS
    assert kinds.count("step") == EPOCHS * STEPS
    assert state(whole)["progress"]["step"] == EPOCHS * STEPS
