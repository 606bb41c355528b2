"""The record of a run: its rows, what a resumed run keeps of them, and the W&B run beside it."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from wandb_log import read, read_all

from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.runtime import LocalRuntime
from bts_dist.track import METRICS, NullTracker, RunTracker, open_tracker, read_metrics, wandb_id
from bts_dist.train import train
from bts_dist.wandb_log import read_end
from shards.store import Entry, LocalStore

CANARY = "canary-7c1e02f9"


class Bucket:
    """A store that is no folder, as object storage is none."""

    uri = "s3://bucket/runs/run"

    def __init__(self, root: Path) -> None:
        self._files = LocalStore("", root)

    def get(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        return self._files.get(key, start, size)

    def put(self, key: str, data: bytes | memoryview | Path, *, if_absent: bool = False) -> None:
        self._files.put(key, data, if_absent=if_absent)

    def list(self, prefix: str = "") -> list[Entry]:
        return self._files.list(prefix)

    def delete(self, key: str) -> None:
        self._files.delete(key)


def tracker(config: Config, run: LocalStore, step: int = 0) -> RunTracker:
    return open_tracker(config, run, run.root, step=step, wandb_id="id", published=lambda: 0)


def test_rows_say_what_when_and_where(config: Config, run: LocalStore) -> None:
    with tracker(config, run) as record:
        record.log("step", 3, {"loss": 0.5})
        record.log("epoch", 4, {"val/dice/patient": 0.25})
        record.note(4, "one was skipped")
        record.images(4, [])
    rows = read_metrics(run)
    assert [(row["kind"], row["step"]) for row in rows] == [("step", 3), ("epoch", 4), ("note", 4)]
    assert [row["time"] for row in rows] == sorted(row["time"] for row in rows)
    assert [row["val/dice/patient"] for row in read_metrics(run, "epoch")] == [0.25]
    assert read_metrics(run, "note")[0]["text"] == "one was skipped"


def test_a_resumed_run_drops_the_rows_after_its_checkpoint(config: Config, run: LocalStore) -> None:
    with tracker(config, run) as record:
        for step in range(1, 6):
            record.log("step", step, {"loss": step})
    with tracker(config, run, step=3) as record:
        record.log("step", 4, {"loss": 44})
    assert [row["loss"] for row in read_metrics(run)] == [1, 2, 3, 44]
    with tracker(config, run):
        pass
    assert read_metrics(run) == []


def test_a_row_cut_short_is_no_row(config: Config, run: LocalStore) -> None:
    with tracker(config, run) as record:
        record.log("step", 1, {"loss": 1})
        record.log("step", 2, {"loss": 2})
    path = run.root / METRICS
    path.write_bytes(path.read_bytes()[:-9])
    assert [row["loss"] for row in read_metrics(run)] == [1]
    assert len((tracker(config, run, step=5).workspace / METRICS).read_text().splitlines()) == 1


def test_a_run_without_a_record_has_no_rows(run: LocalStore) -> None:
    assert read_metrics(run) == []


def test_an_id_is_drawn_once_for_each_run(tmp_path: Path) -> None:
    first, second = LocalStore("", tmp_path / "a"), LocalStore("", tmp_path / "b")
    assert wandb_id(first) == wandb_id(first) != wandb_id(second)


def test_a_record_away_from_its_run_goes_there_when_flushed(config: Config, tmp_path: Path) -> None:
    run = Bucket(tmp_path / "bucket")
    with open_tracker(config, run, tmp_path / "work", step=0, wandb_id="id", published=lambda: 0) as record:
        record.log("step", 1, {"loss": 1})
        assert read_metrics(run) == []
        record.flush()
        assert len(read_metrics(run)) == 1
        record.log("step", 2, {"loss": 2})
    assert len(read_metrics(run)) == 2
    # Another node goes on with what lies in the run.
    open_tracker(config, run, tmp_path / "elsewhere", step=1, wandb_id="id", published=lambda: 0)
    assert len((tmp_path / "elsewhere" / METRICS).read_text().splitlines()) == 1


def test_the_null_tracker_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with NullTracker() as record:
        record.log("step", 1, {"loss": 1})
        record.images(1, [])
        record.note(1, "text")
        record.flush()
    assert list(tmp_path.iterdir()) == []


def test_one_training_is_one_wandb_run_that_tells_of_the_experiment_alone(
    config: Config, run: LocalStore, runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BTS_SECRET", CANARY)
    monkeypatch.setattr("sys.argv", ["train", f"--password={CANARY}"])
    config = with_overrides(
        config,
        {"track.wandb": "offline", "track.project": "phantoms", "track.overlays": 1, "data.source": "here"},
    )
    progress = train(config, runtime, run, run.root)
    logs = sorted((run.root / "wandb").glob("offline-run-*/*.wandb"))
    assert len(logs) == 1
    kept = read(logs[0])
    assert (kept.id, kept.project, kept.name, kept.exit_code) == (progress.wandb_id, "phantoms", "run", 0)
    assert kept.host == ""
    tree = json.loads(config.model_dump_json())
    assert {key: kept.config[key] for key in tree} == tree
    rows = {row["_step"]: row for row in kept.history}
    for row in read_metrics(run, "step"):
        assert rows[row["step"]]["step/loss"] == row["loss"]
    epochs = read_metrics(run, "epoch")
    assert [rows[row["step"]]["val/dice/patient"] for row in epochs] == progress.val_dice
    assert rows[epochs[0]["step"]]["val/overlays.count"] == 1
    pictures = list(logs[0].parent.glob("files/media/images/**/*.png"))
    assert pictures
    for path in (run.root / "wandb").rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path

    # Going on with it is another log of the same W&B run.
    longer = train(with_overrides(config, {"train.epochs": 3}), runtime, run, run.root)
    assert longer.wandb_id == progress.wandb_id
    given = [row["_step"] for log in read_all(run.root, progress.wandb_id or "") for row in log.history]
    assert given == list(range(1, longer.step + 1))


def test_the_log_of_a_run_on_object_storage_is_kept_there(config: Config, tmp_path: Path) -> None:
    run = Bucket(tmp_path / "bucket")
    stray = tmp_path / "node" / "wandb" / "offline-run-20200101_000000-other" / "run-other.wandb"
    stray.parent.mkdir(parents=True)
    stray.write_text("another run's")
    offline = with_overrides(config, {"track.wandb": "offline"})

    def start(node: str, resumed: int, steps: Sequence[int], published: int) -> RunTracker:
        record = open_tracker(
            offline, run, tmp_path / node, step=resumed, wandb_id="mine", published=lambda: published
        )
        for step in steps:
            record.log("step", step, {"loss": 1.5 * step})
        return record

    # Of these four, the node's own log has three, and is lost to the run after the second.
    first = start("node", 0, [1, 2, 3, 4], published=3)
    first.flush()
    first.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    [log] = read_all(tmp_path / "bucket", "mine")
    assert (log.id, log.exit_code) == ("mine", 1)
    assert [(row["_step"], row["step/loss"]) for row in log.history] == [(1, 1.5), (2, 3.0), (3, 4.5)]
    cut_after(run, tmp_path / "bucket", step=2)

    start("elsewhere", 3, [4, 5], published=4).__exit__(None, None, None)
    start("node", 4, [5, 6], published=6).__exit__(None, None, None)
    logs = read_all(tmp_path / "bucket", "mine")
    assert len(logs) == 3
    given = [(row["_step"], row["step/loss"]) for log in logs for row in log.history]
    assert given == [(step, 1.5 * step) for step in range(1, 7)]
    assert not run.list("wandb/offline-run-20200101")


def cut_after(run: Bucket, root: Path, step: int) -> None:
    """Leave the run's log as it was uploaded while the row after ``step`` was being written."""
    [key] = [e.key for e in run.list("wandb/") if e.key.endswith(".wandb")]
    data = run.get(key)
    for size in range(len(data), 0, -1):
        if read_end(data[:size]).step == step:
            (root / key).write_bytes(data[:size])
            return
