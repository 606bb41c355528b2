"""A search whose command is killed goes on: nothing that ended is run again, and what was running resumes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ray_nodes import Nodes, free_port

from bts_dist.attempt import newest_attempt
from bts_dist.compose import load_config
from bts_dist.config import Config
from bts_dist.run import open_run
from bts_dist.runtime import LocalRuntime
from bts_dist.track import read_metrics
from bts_dist.train import train
from cluster.tune_ledger import METRIC, Ledger, Trial, best_of, trial_config
from cluster.tune_results import read_trials
from cluster.tune_rungs import Rungs
from cluster.tune_search import make_searcher
from shards.config import StoreConfig
from shards.store import LocalStore, open_store

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(600),
]  # longer than its own waits, which say what was missing

SETTINGS = [
    "model.features=8",
    "model.depth=3",
    "model.norm=group",
    "optim.lr=1e-2",
    "schedule={kind: constant}",
    # Without these it learns so fast that the trials differ.
    "augment.affine=0",
    "augment.elastic=0",
    "augment.intensity=0",
    "train.global_batch=4",
    "train.precision=fp32",
    "train.deterministic=true",
    "train.checkpoint_steps=4",
    "train.threads=1",
    "track.wandb=disabled",
    "cluster.workers=1",
    "tune.trials=3",
    "tune.epochs=8",
    "tune.grace_epochs=4",
    "tune.search=optuna",
    "tune.space={optim.lr: {loguniform: [2.0e-3, 5.0e-2]}, optim.ema: {choice: [null, 0.9]}}",
]


@pytest.fixture
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A cluster that outlives the command, with room for one trial at a time."""
    folder = tmp_path_factory.mktemp("ray") / "r"
    folder.mkdir()
    nodes = Nodes(free_port(), folder)
    try:
        nodes.start_head()
        nodes.add()
        yield nodes
    finally:
        nodes.stop()


@pytest.fixture
def search(nodes: Nodes, packed: Path, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts the command; its output is added to ``output.txt``."""
    processes = []
    options = [
        part
        for value in [*places(packed, tmp_path), f"cluster.address={nodes.address}", *SETTINGS]
        for part in ("--set", value)
    ]

    def start() -> subprocess.Popen[str]:
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "cluster.cli", "tune", *options],
                env=nodes.environment,
                stdout=(tmp_path / "output.txt").open("a"),
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_a_killed_search_goes_on(
    search: Callable[[], subprocess.Popen[str]], nodes: Nodes, packed: Path, tmp_path: Path
) -> None:
    process = search()
    second = LocalStore("", tmp_path / "none")

    # A trial whose worker is killed goes on from its checkpoint, as any training does.
    wait(
        process,
        lambda: list((tmp_path / "run" / "tune").glob("*/trials/0000/checkpoints/*/files.json")),
        tmp_path,
    )
    os.kill(next(pid for node in nodes.nodes for pid in node.workers()), signal.SIGKILL)

    def second_trains() -> bool:
        nonlocal second
        found = list((tmp_path / "run" / "tune").glob("*/trials/0001"))
        if not found:
            return False
        second = LocalStore(str(found[0]), found[0])
        # A whole one: what is being uploaded when the command is killed counts for nothing.
        return bool(list(found[0].glob("checkpoints/*/files.json")))

    wait(process, second_trains, tmp_path)
    process.kill()
    process.wait()
    first = LocalStore("", second.root.parent / "0000")
    assert len(read_metrics(first, "epoch")) == 8
    assert len(read_metrics(second, "epoch")) < 8
    attempts = newest_attempt(second)

    assert search().wait(240) == 0, told(tmp_path)
    assert newest_attempt(first) == 2
    assert newest_attempt(second) == attempts + 1
    assert any(row["text"].startswith("resuming after") for row in read_metrics(second, "note"))
    assert "going on: 1 trials have ended, 1 resume" in told(tmp_path)
    assert list((tmp_path / "run").rglob("ray")) == [], "nothing of Ray's own notes is left, of both commands"

    # What follows is what follows without a kill, here without Ray: the proposals, the scores and the best.
    expected = undisturbed(load_config([], [*places(packed, tmp_path), *SETTINGS]), tmp_path / "undisturbed")
    run = open_store(str(tmp_path / "run"), StoreConfig())
    assert [
        (row["optim.lr"], row["optim.ema"], row["scores"], row["status"]) for row in read_trials(run)
    ] == [
        (trial.values["optim.lr"], trial.values["optim.ema"], list(trial.scores), trial.status)
        for trial in expected
    ]
    best = load_config([tmp_path / "run" / "tune" / "best.yaml"])
    winner = best_of(expected)
    assert winner is not None
    assert winner.number == 1
    assert best.optim.lr == winner.values["optim.lr"]

    # A third time there is nothing left to do, and it says so without a trial.
    before = told(tmp_path)
    assert search().wait(120) == 0
    assert "up to date" in told(tmp_path).removeprefix(before)
    assert newest_attempt(second) == attempts + 1


def undisturbed(config: Config, place: Path) -> list[Trial]:
    """The search trial after trial in this process."""
    searcher, rungs, trials = make_searcher(config), Rungs(config.tune), list[Trial]()
    for number in range(config.tune.trials):
        values = searcher.propose(number, trials)
        assert values is not None
        trial = Trial(number, values, "finished")
        own = trial_config(config, Ledger(str(place / "a" / "tune" / "b"), config.store), trial)
        run = open_run(own)
        assert isinstance(run, LocalStore)
        train(own, LocalRuntime(0, 1, 0, torch.device("cpu")), run, run.root)
        for row in read_metrics(run, "epoch"):
            trial = replace(trial, scores=(*trial.scores, row[METRIC]))
            rungs.record(number, row["epoch"], row[METRIC])
            if not rungs.goes_on(number, row["epoch"]):
                trial = replace(trial, status="stopped")
                break
        trials.append(trial)
    return trials


def places(packed: Path, folder: Path) -> list[str]:
    return [f"data.shards={packed}", f"run.dir={folder}", "run.name=run"]


def told(folder: Path) -> str:
    return (folder / "output.txt").read_text()


def wait(process: "subprocess.Popen[str]", until: Callable[[], Any], folder: Path) -> None:
    end = time.monotonic() + 200
    while not until():
        assert process.poll() is None, told(folder)
        assert time.monotonic() < end, told(folder)
        time.sleep(0.02)
