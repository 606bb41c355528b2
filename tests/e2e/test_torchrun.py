"""The same training under torchrun, without Ray."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bts_dist.track import read_metrics
from shards.store import open_store

pytestmark = [pytest.mark.e2e]

Bts = Callable[..., subprocess.CompletedProcess[str]]


def test_two_processes_of_torchrun_train_like_one(folder: Path, bts: Bts) -> None:
    options = ["--config", "tiny.yaml", "--set", "track.wandb=disabled"]
    bts(folder, "pack", *options, "--set", "cluster.runtime=local")
    bts(folder, "train", *options, "--set", "cluster.runtime=local", "--set", "run.name=one")
    program = str(Path(sys.executable).with_name("bts"))
    two = ["--set", "cluster.runtime=torchrun", "--set", "run.name=two"]
    torchrun = ["--standalone", "--nproc-per-node=2", "--no-python", program, "train", *options, *two]
    printed = bts(folder, *torchrun, program="torchrun").stdout
    # Of the two processes one speaks.
    assert printed.count("next: ") == 1
    rows = [read_metrics(open_store(str(folder / "runs" / name)), "epoch") for name in ("one", "two")]
    losses = [[row["train/loss"] for row in run] for run in rows]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert "2 worker(s)" in read_metrics(open_store(str(folder / "runs" / "two")), "note")[-1]["text"]
