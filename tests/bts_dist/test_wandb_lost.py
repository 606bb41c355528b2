"""W&B's process lost in the midst of a record: the work goes on.

It is killed, as the system does where memory runs out, or frozen, so that it is there and takes nothing any more.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from bucket import Bucket
from model_run import NAME, fresh_run
from wandb_log import read_all

from bts_dist import wandb_process, wandb_search, wandb_stages
from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.run import open_run
from bts_dist.track import METRICS, open_tracker, read_metrics, wandb_id
from bts_dist.wandb_login import load_settings
from bts_dist.wandb_search import mark_best, record_search
from bts_dist.wandb_stages import record_score
from shards.store import LocalStore, open_store

GONE = "W&B: its process is gone or refuses ("


@pytest.fixture
def offline(config: Config, tmp_path: Path) -> Config:
    track = {"wandb": "offline", "group": "group"}
    return with_overrides(config, {"track": track, "run.dir": str(tmp_path), "run.name": "run"})


def kill_wandb(by: signal.Signals = signal.SIGKILL) -> None:
    """Kill W&B's process, a child of this one, or stop it, and wait until that is so."""
    [process] = [child for child in children() if b"wandb-core" in (child / "cmdline").read_bytes()]
    os.kill(int(process.name), by)
    while state(process) not in "ZT":
        time.sleep(0.01)
    time.sleep(0.1)  # for the thread that reads from it


def children() -> set[Path]:
    found: set[Path] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended meanwhile
            found |= {Path("/proc", pid) for pid in (task / "children").read_text().split()}
    return found


def state(process: Path) -> str:
    return (process / "stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("killed_before", ["row", "lineage", "end"])
def test_the_training_goes_on_and_says_so_once(offline: Config, tmp_path: Path, killed_before: str) -> None:
    run, node = Bucket(tmp_path / "bucket"), tmp_path / "node"
    fresh_run(tmp_path / "bucket", offline)
    run.put(METRICS, b"")
    done = [0]
    tracker = open_tracker(offline, run, node, step=0, wandb_id="id", published=lambda: done[-1])
    data = wandb_stages.DataReference(open_store(offline.data.shards))
    models = {"best": wandb_stages.ModelReference(run, "id", NAME)}
    with tracker:
        for step in range(1, 6):
            if step == 3 and killed_before == "row":
                kill_wandb()
            done.append(step)
            tracker.log("step", step, {"loss": step})
        if killed_before == "lineage":
            kill_wandb()
        tracker.lineage(data, models)
        tracker.lineage(data, models)
        if killed_before == "end":
            kill_wandb()
    # Also what came after the loss is uploaded.
    assert [row["loss"] for row in read_metrics(run, "step")] == [1, 2, 3, 4, 5]
    [note] = read_metrics(run, "note")
    assert note["text"].startswith(GONE)
    assert [entry for entry in run.list("wandb/") if entry.key.endswith("/run-id.wandb")]

    # A later start of this very process has a new W&B process, and makes up for what is missing.
    with open_tracker(offline, run, node, step=5, wandb_id="id", published=lambda: 6) as later:
        later.log("step", 6, {"loss": 6})
    logs = read_all(tmp_path / "bucket", "id")
    assert [row["_step"] for log in logs for row in log.history] == [1, 2, 3, 4, 5, 6]
    assert logs[-1].exit_code == 0


@pytest.mark.parametrize("frozen_before", ["rows", "lineage", "end"])
def test_the_training_does_not_wait_for_a_frozen_process(
    offline: Config, run: LocalStore, monkeypatch: pytest.MonkeyPatch, frozen_before: str
) -> None:
    monkeypatch.setattr(wandb_process, "STUCK_S", 1.0)
    data = wandb_stages.DataReference(open_store(offline.data.shards))
    # So many that the socket has no more room for them.
    last = 3000 if frozen_before == "rows" else 3
    with open_tracker(offline, run, run.root, step=0, wandb_id="id", published=lambda: last) as tracker:
        for step in range(1, last + 1):
            if step == 2 and frozen_before == "rows":
                kill_wandb(signal.SIGSTOP)
            tracker.log("step", step, {"loss": step})
        if frozen_before == "lineage":
            kill_wandb(signal.SIGSTOP)
        tracker.lineage(data, {})
        if frozen_before == "end":
            kill_wandb(signal.SIGSTOP)
    assert [row["loss"] for row in read_metrics(run, "step")] == list(range(1, last + 1))
    [note] = read_metrics(run, "note")
    assert note["text"].startswith(f"{GONE}it did not answer within 1 s and was killed)")
    assert [child for child in children() if state(child) == "T"] == []


FROZEN_AT_THE_END = """
import os, signal, sys
from pathlib import Path
from bts_dist import wandb_process
from bts_dist.wandb_login import load_settings
from cluster.cli import main

wandb_process.STUCK_S = 1.0
load_settings()
process = wandb_process._process()
os.kill(process.pid, signal.SIGSTOP)
print(process.pid, flush=True)
main(["--help"])
"""


def test_a_command_does_not_wait_at_its_end_for_a_frozen_process() -> None:
    with subprocess.Popen([sys.executable, "-c", FROZEN_AT_THE_END], stdout=subprocess.PIPE) as command:
        assert command.stdout is not None
        frozen = int(command.stdout.readline())
        try:
            assert command.wait(60) == 0
            assert not Path("/proc", str(frozen)).exists()
        finally:
            if command.poll() is None:
                os.kill(frozen, signal.SIGKILL)


def test_a_job_that_was_halted_does_not_kill_a_process_that_is_well(
    run: LocalStore, offline: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `docker pause` or a batch system does with all of a job: the time that passes is nobody's fault."""
    monkeypatch.setattr(wandb_process, "STUCK_S", 2.0)
    halted = f"""
import os, signal, time
time.sleep(0.3)
os.kill({os.getpid()}, signal.SIGSTOP)
time.sleep(3)
os.kill({os.getpid()}, signal.SIGCONT)
"""
    load_settings()
    with subprocess.Popen([sys.executable, "-c", halted]) as other, wandb_process.limited():
        other.wait()
        time.sleep(0.2)
    process = wandb_process._process()
    assert process is not None
    assert process.poll() is None


SHARED = """
import os, signal, sys
from pathlib import Path
from bts_dist.config import Config
from bts_dist.wandb_record import WandbRecord
from bts_dist.wandb_session import begin_wandb

config = Config.model_validate_json(sys.stdin.read())
run = begin_wandb(config, Path(sys.argv[1]), "id", "run")
if sys.argv[2] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
WandbRecord(run, 0).finish(exit_code=0)
"""


def test_a_worker_that_was_killed_does_not_keep_the_next_one_from_its_run(
    offline: Config, tmp_path: Path
) -> None:
    """Workers of one command, which has asked W&B itself."""
    load_settings()
    assert "WANDB_SERVICE" not in os.environ, "by which also `wandb sync` would find this one's"
    for end, code in (("killed", -signal.SIGKILL), ("well", 0)):
        done = subprocess.run(
            [sys.executable, "-c", SHARED, str(tmp_path), end],
            input=offline.model_dump_json(),
            stderr=subprocess.PIPE,
            text=True,
        )
        assert done.returncode == code, done.stderr
    assert [log.exit_code for log in read_all(tmp_path, "id")][-1] == 0


def test_killed_between_two_records_costs_neither(offline: Config, run: LocalStore) -> None:
    for own in ("one", "two"):
        with open_tracker(offline, run, run.root, step=0, wandb_id=own, published=lambda: 1) as tracker:
            tracker.log("step", 1, {"loss": 0.5})
        if own == "one":
            kill_wandb()
    assert [len(read_all(run.root, own)[0].history) for own in ("one", "two")] == [1, 1]
    assert read_metrics(run, "note") == []


def test_a_stage_goes_on(offline: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket(tmp_path / "bucket")
    fresh_run(tmp_path / "bucket", offline)
    for name in ("score.json", "patients.csv"):
        bucket.put(f"score/{name}", b"")
    log_artifact = wandb_stages.log_artifact

    def killed(*args: Any) -> None:
        kill_wandb()
        log_artifact(*args)

    notes: list[str] = []
    result: dict[str, Any] = {"metrics": {}, "patients": [{"patient": "a", "dice": 0.5}]}
    for log in (killed, log_artifact):
        monkeypatch.setattr(wandb_stages, "log_artifact", log)
        record_score(offline, bucket, "score", result, [(bucket, NAME)], None, notes.append)
    [note] = notes
    assert note.startswith(GONE)
    newest = read_all(tmp_path / "bucket", f"{wandb_id(bucket)}-score")[-1]
    assert [row["patients.nrows"] for row in newest.history] == [1]
    assert newest.exit_code == 0


def test_a_search_goes_on(offline: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = LocalStore(str(tmp_path / "search"), tmp_path / "search")
    table_file = wandb_search.table_file

    def killed(*args: Any) -> dict[str, Any]:
        kill_wandb()
        return table_file(*args)

    monkeypatch.setattr(wandb_search, "table_file", killed)
    notes: list[str] = []
    record_search(offline, place, place.root, [{"trial": 0, "scores": [], "error": None}], 0, notes.append)
    mark_best(offline, notes.append)
    [note] = notes
    assert note.startswith(GONE)
    [log] = read_all(tmp_path / "run", wandb_id(open_run(offline)))
    assert log.summary["search/best"] is True
