"""Source, shards and run on object storage: the same commands, with ``s3://`` for a path."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bts_dist.track import read_metrics
from shards.store import open_store

pytestmark = [pytest.mark.e2e]

Bts = Callable[..., subprocess.CompletedProcess[str]]


def test_the_job_on_object_storage_learns_what_the_job_on_disk_learns(
    folder: Path, bucket: str, bts: Bts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    for path in sorted((folder / "raw").rglob("*.tif")):
        open_store(f"{bucket}/raw").put(path.relative_to(folder / "raw").as_posix(), path)
    here = ["--config", "tiny.yaml", "--set", "cluster.runtime=local", "--set", "tune.trials=0"]
    there = [
        *here,
        *("--set", f"data.source={bucket}/raw"),
        *("--set", f"data.shards={bucket}/packed"),
        *("--set", f"run.dir={bucket}/runs"),
    ]
    bts(folder, "run", *here)
    printed = bts(folder, "run", *there).stdout
    assert f"{bucket}/runs/tiny/report.html" in printed
    bts(folder, "verify", "--packed", f"{bucket}/packed")

    remote, local = open_store(f"{bucket}/runs/tiny"), open_store(str(folder / "runs" / "tiny"))
    losses = [[row["train/loss"] for row in read_metrics(run, "epoch")] for run in (remote, local)]
    assert losses[0] == losses[1]
    scores = [json.loads(run.get("score/score.json"))["patients"] for run in (remote, local)]
    assert scores[0] == scores[1]
    keys = [entry.key for entry in remote.list()]
    assert "report.html" in keys
    assert any(key.startswith("wandb/") and key.endswith(".wandb") for key in keys)
    assert bts(folder, "run", *there).stdout.count("up to date") == 4
