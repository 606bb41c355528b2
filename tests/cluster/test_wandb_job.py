"""What W&B is told of a whole job: its stages, what each used and made, and nobody's name, machine or secret."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from wandb_log import Artifact, OfflineRun, raw_records, read

from bts_dist.pseudonyms import KEY_FILE, pseudonym
from cluster.cli import guarded

CANARY = "canary-5f3a9c"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": f"{CANARY}-id",
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}-secret",
    "WANDB_API_KEY": f"{CANARY}".ljust(40, "0"),
    "DATABASE_URL": f"postgres://{CANARY}@db",
    "USER": f"{CANARY}-user",
    "LOGNAME": f"{CANARY}-user",
    "HOSTNAME": f"{CANARY}-host",
    "EMAIL": f"{CANARY}@example.org",
    "GIT_AUTHOR_EMAIL": f"{CANARY}@example.org",
    "WANDB_USERNAME": f"{CANARY}-name",
    "WANDB_USER_EMAIL": f"{CANARY}@example.org",
    "BTS_COMMIT": "0123456789abcdef0123456789abcdef01234567",
}
SETTINGS = [
    "data.image_size=32",
    "data.shards=packed",
    "phantom.patients=10",
    "phantom.size=32",
    "model.features=4",
    "model.depth=3",
    "model.norm=group",
    "train.epochs=3",
    "train.global_batch=8",
    "train.precision=fp32",
    "train.log_every=1",
    "optim.lr=5e-3",
    "pack.samples_per_shard=16",
    "pack.workers=1",
    "split.train=0.6",
    "split.val=0.2",
    "split.test=0.2",
    "score.bootstrap=100",
    "track.overlays=2",
    "cluster.runtime=local",
    "run.name=job",
]


@dataclass(frozen=True)
class Job:
    run: Path
    patients: list[str]
    logs: dict[str, OfflineRun]
    """By job type."""

    @property
    def key(self) -> bytes:
        return (self.run / KEY_FILE).read_bytes()


def command(source: Path, *extra: str) -> list[str]:
    sets = [f"data.source={source}", *SETTINGS, *extra]
    return ["run", *(word for each in sets for word in ("--set", each))]


@pytest.fixture(scope="module")
def job(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The main job, in a process whose environment is full of secrets."""
    folder = tmp_path_factory.mktemp("job")
    home = folder / f"{CANARY}-home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "cluster.cli", *command(phantom)],
        cwd=folder,
        env={**os.environ, **ENVIRONMENT, "HOME": str(home)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = folder / "runs" / "job"
    manifest = json.loads((folder / "packed" / "manifest.json").read_text())
    logs = [read(path) for path in run.glob("wandb/offline-run-*/*.wandb")]
    patients = [patient for split in manifest["patients"].values() for patient in split]
    assert len({log.job_type for log in logs}) == len(logs)
    return Job(run, patients, {log.job_type: log for log in logs})


def artifacts(log: OfflineRun, kind: str, *, used: bool) -> list[Artifact]:
    return [each for each in log.artifacts if each.kind == kind and each.used == used]


def test_each_stage_is_a_run_of_one_group(job: Job) -> None:
    assert set(job.logs) == {"pack", "train", "score"}
    own = (job.run / "wandb-id").read_text()
    assert {kind: log.id for kind, log in job.logs.items()} == {
        "pack": f"{own}-pack",
        "train": own,
        "score": f"{own}-score",
    }
    for log in job.logs.values():
        assert (log.group, log.project, log.exit_code) == ("job", "bts-dist", 0)
        assert log.commit == ENVIRONMENT["BTS_COMMIT"]
        assert log.host == ""


def test_lineage_leads_from_the_data_over_the_model_to_the_score(job: Job) -> None:
    pack, train, score = (job.logs[kind] for kind in ("pack", "train", "score"))
    [data] = artifacts(pack, "dataset", used=False)
    assert set(data.files) == {"manifest.json", "index.parquet"}
    [into_training], [into_score] = (artifacts(log, "dataset", used=True) for log in (train, score))
    assert data.files == into_training.files == into_score.files
    assert data.name == into_training.name == into_score.name
    models = artifacts(train, "model", used=False)
    by_alias = {alias: model for model in models for alias in model.aliases if alias != "latest"}
    assert set(by_alias) == {"best", "last"}
    [scored] = artifacts(score, "model", used=True)
    assert (scored.name, scored.files) == (by_alias["best"].name, by_alias["best"].files)
    assert {"model.safetensors", "config.json"} <= set(scored.files)
    [made] = artifacts(score, "score", used=False)
    assert set(made.files) == {"score.json", "patients.csv"}


def test_every_reference_leads_to_a_file_of_that_size(job: Job) -> None:
    found = [file for log in job.logs.values() for each in log.artifacts for file in each.files.values()]
    assert len(found) > 15
    for uri, digest, size in found:
        path = Path(uri.removeprefix("file://"))
        assert path.stat().st_size == size, uri
        assert len(digest) == 64
    # And nothing is sent along: all files of the logs are pictures, the table and W&B's own.
    kinds = {path.suffix for path in job.run.glob("wandb/offline-run-*/files/**/*") if path.is_file()}
    assert kinds <= {".png", ".json", ".yaml"}


def test_the_table_of_patients_bears_other_names(job: Job) -> None:
    score = json.loads((job.run / "score" / "score.json").read_text())
    table = wandb_table(job)
    named = dict(zip(column(table, "patient"), column(table, "dice"), strict=True))
    assert named == {pseudonym(p["patient"], job.key): pytest.approx(p["dice"]) for p in score["patients"]}
    assert "institution" not in table["columns"]
    summary = job.logs["score"].summary
    assert summary["dice/patient"] == score["metrics"]["dice/patient"]["mean"]


def wandb_table(job: Job) -> dict[str, Any]:
    [path] = job.run.glob("wandb/offline-run-*/files/media/table/patients*.table.json")
    table: dict[str, Any] = json.loads(path.read_text())
    return table


def column(table: dict[str, Any], name: str) -> list[Any]:
    at = table["columns"].index(name)
    return [row[at] for row in table["data"]]


def test_epochs_and_steps_have_axes_of_their_own(job: Job) -> None:
    log = job.logs["train"]
    assert log.axes["val/*"] == log.axes["system/*"] == "epoch"
    epochs = [row for row in log.history if "val/dice/patient" in row]
    drawn = {name for row in epochs for name in row} - {"epoch"}
    drawn = {name for name in drawn if not name.startswith(("_", "step/"))}
    assert {name for name in drawn if not any(fnmatchcase(name, axis) for axis in log.axes)} == set()
    assert [row["epoch"] for row in epochs] == [1, 2, 3]
    assert all(0 < row["system/node-0/memory"] < 100 for row in epochs)
    assert len([row for row in log.history if "step/loss" in row]) >= len(epochs)


def test_the_same_numbers_stand_beside_it_as_json_lines(job: Job) -> None:
    [row] = map(json.loads, (job.run / "score" / "metrics.jsonl").read_text().splitlines())
    score = json.loads((job.run / "score" / "score.json").read_text())
    assert row["kind"] == "score"
    assert row["dice/patient"] == score["metrics"]["dice/patient"]["mean"]


def test_nobody_is_named_and_no_secret_is_kept(job: Job) -> None:
    names = [patient.encode() for patient in job.patients]
    unwanted = [*names, CANARY.encode(), job.key]
    host = socket.gethostname()
    if len(host) > 5:  # a short one is found in anything
        unwanted.append(host.encode())
    files = [path for path in (job.run / "wandb").rglob("*") if path.is_file()]
    assert len([path for path in files if path.suffix == ".wandb"]) >= 3
    looked_at = 0
    for path in files:
        contents = [path.read_bytes()]
        if path.suffix == ".wandb":  # a name may lie across two blocks of it
            contents += raw_records(path)
        for content in contents:
            looked_at += 1
            assert [word for word in unwanted if word in content] == [], path
    assert looked_at > 50


def test_the_search_for_names_would_find_them(job: Job) -> None:
    """The very names stand in what the run keeps for itself."""
    table = (job.run / "score" / "patients.csv").read_bytes()
    assert any(patient.encode() in table for patient in job.patients)


def test_a_stage_done_again_goes_on_with_its_run(
    job: Job, phantom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(job.run.parents[1])
    assert guarded(command(phantom, "score.bootstrap=200", "track.pseudonymise=false")) == 0
    logs = [read(path) for path in job.run.glob("wandb/offline-run-*/*-score.wandb")]
    first, second = sorted(logs, key=lambda log: log.started)
    assert first.id == second.id
    assert [row["_step"] for log in (first, second) for row in log.history] == [1, 2]
    # Where names are wanted, they are there.
    tables = list(job.run.glob("wandb/offline-run-*/files/media/table/patients*.table.json"))
    shown = {name for path in tables for name in column(json.loads(path.read_text()), "patient")}
    assert {p for p in job.patients if p in shown}
    assert len(list(job.run.glob("wandb/offline-run-*"))) == 4, "what is up to date is not told again"
