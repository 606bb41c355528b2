"""Cross-validation as a user runs it: one command, also when it is interrupted half-way."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
from interrupts import heed_interrupts

pytestmark = pytest.mark.e2e

Bts = Callable[..., subprocess.CompletedProcess[str]]

SETTINGS = (
    "split.fold=all",
    "split.folds=3",
    "cluster.runtime=local",
    "tune.trials=0",
    "train.epochs=1",
    "train.threads=1",
    "track.wandb=disabled",
    "run.name=folds",
)
COMMAND = ["run", "--config", "tiny.yaml", *(part for value in SETTINGS for part in ("--set", value))]

ON_RAY = (
    "cluster.runtime=ray",
    "cluster.workers=1",
    "cluster.cpus_per_worker=0.5",
    "data.shards=ray-packed",
    "run.name=ray-folds",
)


def test_every_patient_is_scored_once_by_a_model_that_never_saw_it(folder: Path, bts: Bts) -> None:
    run = folder / "runs" / "folds"
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster.cli", *COMMAND],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    first = run / "folds" / "fold-0" / "stages"
    end = time.monotonic() + 120
    while not list(first.glob("score-*.json")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    # Nobody works on behind its back.
    seen = sorted(run.rglob("*"))
    time.sleep(1)
    assert sorted(run.rglob("*")) == seen

    printed = bts(folder, *COMMAND).stdout
    assert "fold 0  train  up to date" in printed
    score = json.loads((run / "score" / "score.json").read_text())
    manifest = json.loads((folder / "packed-fold-0-of-3" / "manifest.json").read_text())
    everyone = sorted(patient for patients in manifest["patients"].values() for patient in patients)
    assert [row["patient"] for row in score["patients"]] == everyone
    assert sorted(score["fold_of"]) == everyone
    for fold in score["folds"]:
        own = json.loads((run / "folds" / f"fold-{fold['fold']}" / "score" / "score.json").read_text())
        assert [row["patient"] for row in own["patients"]] == sorted(fold["patients"])
        # The very same figures as from the fold's own job.
        together = [row for row in score["patients"] if row["patient"] in fold["patients"]]
        assert [row.pop("fold") for row in together] == [fold["fold"]] * len(together)
        assert together == own["patients"]
        assert {name: fold[name] for name in score["over_folds"]} == {
            name: own["metrics"][name]["mean"] for name in ("dice/patient", "iou/pooled")
        }
    page = (run / "report.html").read_text()
    assert all(patient in page for patient in everyone)


@pytest.mark.ray
def test_on_ray_folds_go_side_by_side_and_score_the_same(folder: Path, bts: Bts) -> None:
    runs = folder / "runs"
    if not (runs / "folds" / "report.html").is_file():  # this test runs alone
        bts(folder, *COMMAND)
    printed = bts(folder, *COMMAND, *(part for value in ON_RAY for part in ("--set", value))).stdout
    # When each fold's job began and ended, by the first and the last file in its run.
    spans = [_span(runs / "ray-folds" / "folds" / f"fold-{number}") for number in range(3)]
    assert any(max(a[0], b[0]) < min(a[1], b[1]) for a, b in combinations(spans, 2)), spans
    # Whose line it is stays clear.
    assert all(f"fold {number}  score  " in printed for number in range(3))
    local, ray = (
        json.loads((runs / name / "score" / "score.json").read_text()) for name in ("folds", "ray-folds")
    )
    assert ray["data"]["data id"] == local["data"]["data id"]
    assert len(ray["patients"]) == len({row["patient"] for row in ray["patients"]}) == 10
    # One worker on one thread computes the same bits, wherever it was started.
    for part in ("patients", "fold_of", "metrics", "over_folds", "calibration", "thresholds"):
        assert ray[part] == local[part], part


def _span(run: Path) -> tuple[float, float]:
    times = [path.stat().st_mtime for path in run.rglob("*") if path.is_file()]
    return min(times), max(times)


def test_other_commands_take_one_fold(folder: Path, bts: Bts) -> None:
    refused = bts(folder, "pack", "--config", "tiny.yaml", "--set", "split.fold=all", code=2).stderr
    assert "which `bts run` does" in refused
    assert "0 to 4" in refused
