"""The main job as a user runs it: one command on a fresh folder, and the same command again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from interrupts import heed_interrupts

pytestmark = [pytest.mark.e2e, pytest.mark.ray]

Bts = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def finished(folder: Path, bts: Bts) -> tuple[Path, str]:
    """A folder in which the main job has run once, and what it printed."""
    return folder, bts(folder, "run", "--config", "tiny.yaml").stdout


def test_every_stage_leaves_its_output(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    run = folder / "runs" / "tiny"
    score = json.loads((run / "score" / "score.json").read_text())
    assert set(score["metrics"]["dice/patient"]) >= {"mean", "median", "low", "high"}
    assert {"patient", "dice", "iou"} <= set(score["patients"][0])
    manifest = json.loads((folder / "packed" / "manifest.json").read_text())
    assert [p["patient"] for p in score["patients"]] == sorted(manifest["patients"]["test"])
    rows = (run / "score" / "patients.csv").read_text().splitlines()
    assert len(rows) == len(score["patients"]) + 1
    page = (run / "report.html").read_text()
    assert all(p["patient"] in page for p in score["patients"])
    # One W&B run for the training, whatever the number of workers, and one for each other stage.
    own = (run / "wandb-id").read_text()
    logs = sorted(path.stem for path in (run / "wandb").glob("offline-run-*/*.wandb"))
    assert logs == [f"run-{own}", f"run-{own}-pack", f"run-{own}-score"]
    for stage in ("verify", "pack", "tune", "train", "score", "report"):
        assert f"\n{stage}  " in printed


def test_the_same_command_again_does_nothing_over(finished: tuple[Path, str], bts: Bts) -> None:
    folder, _ = finished
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}
    printed = bts(folder, "run", "--config", "tiny.yaml").stdout
    for stage in ("pack", "tune", "train", "choose", "score"):
        assert f"{stage}  up to date" in printed
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")} == before


def test_a_changed_setting_runs_what_depends_on_it(finished: tuple[Path, str], bts: Bts) -> None:
    folder, _ = finished
    printed = bts(folder, "run", "--config", "tiny.yaml", "--set", "score.bootstrap=200").stdout
    assert "train  up to date" in printed
    assert "score  up to date" not in printed


def test_an_external_data_set_is_scored_by_the_trained_model(finished: tuple[Path, str], bts: Bts) -> None:
    folder, _ = finished
    other = ["--set", "data.source=others", "--set", "data.shards=external", "--set", "cluster.runtime=local"]
    bts(
        folder,
        "synth",
        "--config",
        "tiny.yaml",
        *other,
        "--set",
        "phantom.seed=9",
        "--set",
        "phantom.patients=3",
    )
    # Phantom patients are numbered alike; these are others.
    for patient in sorted((folder / "others").iterdir()):
        for file in sorted(patient.iterdir()):
            file.rename(file.with_name(file.name.replace("PHANTOM", "OTHER")))
        patient.rename(patient.with_name(patient.name.replace("PHANTOM", "OTHER")))
    bts(folder, "pack", "--config", "tiny.yaml", *other, "--set", "split.kind=none")
    bts(folder, "score", "--model", "runs/tiny", *other[2:])
    (result,) = (folder / "runs" / "tiny").glob("score-*/score.json")
    assert len(json.loads(result.read_text())["patients"]) == 3


def test_patients_the_model_has_seen_are_refused(finished: tuple[Path, str], bts: Bts) -> None:
    folder, _ = finished
    local = ["--set", "cluster.runtime=local", "--set", "data.shards=all"]
    bts(folder, "pack", "--config", "tiny.yaml", *local, "--set", "split.kind=none")
    done = bts(folder, "score", "--model", "runs/tiny", *local, code=2)
    assert "were trained or chosen on" in done.stderr


def test_ctrl_c_ends_with_130_and_the_command_goes_on(finished: tuple[Path, str], bts: Bts) -> None:
    folder, _ = finished
    options = ["--config", "tiny.yaml", "--set", "run.name=stopped", "--set", "train.epochs=400"]
    local = ["--set", "cluster.runtime=local", "--set", "track.wandb=disabled"]
    command = [str(Path(sys.executable).with_name("bts")), "train", *options, *local]
    process = subprocess.Popen(
        command,
        cwd=folder,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=heed_interrupts,
    )
    checkpoints = folder / "runs" / "stopped" / "checkpoints"
    end = time.monotonic() + 120
    while not list(checkpoints.glob("*/files.json")):
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in errors
    options[-1] = "train.epochs=2"
    printed = bts(folder, "train", *options, *local).stdout
    assert "train  " in printed
