"""The W&B run of a training run: what is given to it, when, and how a later start goes on with it."""

import re
import struct
import threading
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from PIL import Image
from wandb.proto import wandb_internal_pb2
from wandb_log import OfflineRun, read

from bts_dist import wandb_record, wandb_session
from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.overlays import SliceOverlay
from bts_dist.pseudonyms import FINGERPRINT_FILE, VARIABLE
from bts_dist.track import open_tracker, read_metrics
from bts_dist.wandb_artifacts import DataReference
from bts_dist.wandb_record import WandbRecord, open_wandb
from shards.errors import InputError
from shards.store import LocalStore, open_store


class Given:
    """A W&B run that keeps what it is given."""

    offline = False

    def __init__(self, starting_step: int = 0) -> None:
        self.starting_step = starting_step
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.axes: dict[str, str] = {}

    def log(self, values: dict[str, Any], *, step: int, commit: bool) -> None:
        assert commit
        self.rows.append((step, values))

    def define_metric(self, name: str, *, step_metric: str) -> None:
        self.axes[name] = step_metric


def overlay(patient: str) -> SliceOverlay:
    """A slice of 8 × 8 whose truth and prediction share a pixel."""
    truth, prediction = np.zeros((2, 8, 8), bool)
    truth[2, 2:5] = prediction[2, 4:7] = True
    return SliceOverlay(patient, 7, np.zeros((8, 8, 3), np.uint8), truth, prediction)


def steps(given: Given) -> list[int]:
    return [step for step, _ in given.rows]


def test_what_no_checkpoint_covers_waits() -> None:
    given = Given()
    record = WandbRecord(given, 0)
    for step in (1, 2, 3):
        record.row("step", step, 0.0, {"loss": step})
    record.hand_over(0)
    assert steps(given) == []
    record.hand_over(2)
    assert steps(given) == [1, 2]
    record.hand_over(2)
    record.hand_over(5)
    assert steps(given) == [1, 2, 3]


def test_all_of_a_step_is_given_at_once() -> None:
    given = Given()
    record = WandbRecord(given, 0)
    record.row("step", 4, 10.5, {"loss": 0.5, "lr": 0.1})
    record.images(4, [overlay("a patient")])
    record.row("epoch", 4, 11.5, {"lr": 0.2, "val/dice/patient": 0.75})
    record.hand_over(4)
    [(step, values)] = given.rows
    assert step == 4
    [picture] = values.pop("val/overlays")
    assert isinstance(picture, wandb.Image)
    assert picture._caption == "a patient slice 7"
    assert values == {
        "_timestamp": 11.5,
        "step/loss": 0.5,
        "step/lr": 0.1,
        "lr": 0.2,
        "val/dice/patient": 0.75,
    }


def test_what_wandb_has_is_not_given_again() -> None:
    given = Given()
    record = WandbRecord(given, 2)
    for step in (1, 2, 3):
        record.row("step", step, 0.0, {"loss": step})
    record.hand_over(9)
    assert steps(given) == [3]


def test_a_row_about_a_start_stands_with_the_step_that_follows() -> None:
    given = Given()
    record = WandbRecord(given, 4)
    record.row("recovery", 4, 1.0, {"down_s": 7})
    record.hand_over(4)
    assert steps(given) == []
    record.row("step", 5, 2.0, {"loss": 0.5})
    record.hand_over(8)
    assert given.rows == [(5, {"_timestamp": 2.0, "recovery/down_s": 7, "step/loss": 0.5})]


def test_online_the_server_says_where_to_go_on(
    config: Config, run: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_overrides(config, {"track.wandb": "online"})
    given = Given(starting_step=3)
    asked: dict[str, Any] = {}

    def init(**options: Any) -> Given:
        asked.update(options)
        return given

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb_session, "check_login", lambda within_s: None)
    run.put("metrics.jsonl", b'{"kind": "step", "step": 2, "time": 1.0, "loss": 2}\n' * 2)
    record = open_wandb(config, run, run.root, "id")
    assert record is not None
    assert (asked["mode"], asked["id"], asked["resume"]) == ("online", "id", "allow")
    assert given.axes["val/*"] == "epoch"
    for step in (2, 3):
        record.row("step", step, 0.0, {"loss": step})
    record.hand_over(3)
    assert steps(given) == [3]


def test_the_end_waits_until_the_log_is_whole(tmp_path: Path) -> None:
    ended = wandb_internal_pb2.Record(exit=wandb_internal_pb2.RunExitRecord()).SerializeToString()
    log = tmp_path / "run-id.wandb"
    log.write_bytes(b":W&B\xe1\xbe\x00")

    class Slow(Given):
        """Its process closes the log after it has answered, as W&B's does."""

        dir = str(tmp_path / "files")

        def finish(self, exit_code: int) -> None:
            checksum = zlib.crc32(b"\x01" + ended)
            with log.open("ab") as file:
                file.write(struct.pack("<IHB", checksum, len(ended), 1))
            writer.start()

    def close() -> None:
        with log.open("ab") as file:
            file.write(ended)

    writer = threading.Timer(0.2, close)
    WandbRecord(Slow(), 0).finish(exit_code=0)
    assert read(log).exit_code == 0
    assert [path.name for path in tmp_path.glob("*.synced")] == ["run-id.wandb.synced"]


@pytest.mark.parametrize("offline", [False, True])
def test_what_was_not_sent_at_the_end_is_not_marked_as_sent(offline: bool, tmp_path: Path) -> None:
    class Cut(Given):
        """Waits in vain for the rest to be sent; offline, there is none to wait for."""

        dir = str(tmp_path / "files")

        def finish(self, exit_code: int) -> None:
            if not self.offline:
                raise TimeoutError("Timed out finishing run.")

    ended = wandb_internal_pb2.Record(exit=wandb_internal_pb2.RunExitRecord()).SerializeToString()
    header = struct.pack("<IHB", zlib.crc32(b"\x01" + ended), len(ended), 1)
    (tmp_path / "run-id.wandb").write_bytes(b":W&B\xe1\xbe\x00" + header + ended)
    run = Cut()
    run.offline = offline
    WandbRecord(run, 0).finish(exit_code=0)
    assert list(tmp_path.glob("*.synced")) == []


@pytest.fixture(scope="module")
def offline(config: Config) -> Config:
    return with_overrides(config, {"track.wandb": "offline"})


def logs(run: LocalStore) -> list[Path]:
    return sorted((run.root / "wandb").glob("offline-run-*/run-id.wandb"))


def start(
    config: Config, run: LocalStore, resumed: int, rows: Mapping[int, float], published: int
) -> OfflineRun:
    """A start from a checkpoint that does these steps, ends with an error, and has published up to a step."""
    before = set(logs(run))
    record = open_tracker(config, run, run.root, step=resumed, wandb_id="id", published=lambda: published)
    for step, loss in rows.items():
        record.log("step", step, {"loss": loss})
    record.__exit__(ValueError, ValueError(), None)
    [log] = set(logs(run)) - before
    return read(log)


def losses(log: OfflineRun) -> dict[int, float]:
    return {row["_step"]: row["step/loss"] for row in log.history}


def test_a_later_start_first_gives_what_the_log_of_the_killed_one_lacks(
    offline: Config, run: LocalStore
) -> None:
    assert losses(start(offline, run, 0, {1: 1.0, 2: 2.0, 3: 3.0}, published=2)) == {1: 1.0, 2: 2.0}
    [first] = logs(run)
    data = first.read_bytes()
    # As a kill leaves it: in the midst of the row of step 2.
    first.write_bytes(data[: data.rindex(b"step/loss") + 3])
    still_open = first.open("ab")
    second = start(offline, run, 2, {3: 33.0, 4: 4.0}, published=0)
    assert losses(second) == {2: 2.0}
    assert second.history[0]["_timestamp"] == pytest.approx(read_metrics(run)[1]["time"])
    # What W&B's process of the killed start writes now is of no account.
    with still_open:
        still_open.write(b"late")
    assert losses(read(first)) == {1: 1.0}
    assert read(first).exit_code is None


def test_a_log_without_a_beginning_goes_and_others_stay(offline: Config, run: LocalStore) -> None:
    run.put("wandb/offline-run-20200101_000000-id/run-id.wandb", b":W&B\xe1\xbe\x00")
    run.put("wandb/offline-run-20200101_000000-other/run-other.wandb", b":W&B\xe1\xbe\x00")
    assert losses(start(offline, run, 0, {1: 1.0}, published=1)) == {1: 1.0}
    assert len(logs(run)) == 1
    assert len(list((run.root / "wandb").glob("*/run-other.wandb"))) == 1


def test_under_another_key_for_patients_names_nothing_is_begun(
    offline: Config, run: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.put(FINGERPRINT_FILE, b"0123456789abcdef")
    monkeypatch.setenv(VARIABLE, "a key of the environment")
    with pytest.raises(InputError, match="two names in one run"):
        open_wandb(offline, run, run.root, "abc")
    assert [entry.key for entry in run.list()] == [FINGERPRINT_FILE]


def test_a_start_that_wandb_cannot_record_is_made_up_for_by_the_next(
    offline: Config, run: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(*_: object, **__: object) -> Any:
        raise TimeoutError("its process does not come up")

    with monkeypatch.context() as patch:
        patch.setattr(wandb_record, "begin_wandb", begin)
        with open_tracker(offline, run, run.root, step=0, wandb_id="id", published=lambda: 2) as tracker:
            for step in (1, 2):
                tracker.log("step", step, {"loss": float(step)})
            tracker.flush()
    assert logs(run) == []
    [told] = [row["text"] for row in read_metrics(run) if row["kind"] == "note"]
    assert told.startswith("W&B: no record of this start (its process does not come up)")
    assert losses(start(offline, run, 2, {3: 3.0}, published=3)) == {1: 1.0, 2: 2.0, 3: 3.0}


def test_an_unreadable_log_is_kept_and_refused(offline: Config, run: LocalStore) -> None:
    key = "wandb/offline-run-20200101_000000-id/run-id.wandb"
    run.put(key, b"another format")
    with pytest.raises(InputError, match=r"20200101.*move its folder"):
        open_wandb(offline, run, run.root, "id")
    assert run.get(key) == b"another format"


def test_steps_redone_from_an_older_checkpoint_are_not_given_twice(offline: Config, run: LocalStore) -> None:
    start(offline, run, 0, {1: 1.0, 2: 2.0, 3: 3.0}, published=3)
    second = start(offline, run, 1, {2: 2.0, 3: 3.0, 4: 4.0}, published=4)
    assert losses(second) == {4: 4.0}
    assert [row["step"] for row in read_metrics(run)] == [1, 2, 3, 4]


def test_truth_and_prediction_are_layers_over_the_picture(offline: Config, run: LocalStore) -> None:
    """Read back from what would be uploaded."""
    record = open_wandb(offline, run, run.root, "id")
    assert record is not None
    record.images(1, [overlay("TCGA_CS_4941")])
    record.hand_over(1)
    record.finish(exit_code=0)
    [log] = logs(run)
    values = read(log).history[0]
    [caption] = values["val/overlays.captions"]
    assert re.fullmatch(r"p-[0-9a-f]{10} slice 7", caption)
    [layers] = values["val/overlays.all_masks"]
    found = {
        name: np.array(Image.open(log.parent / "files" / layer["path"])) for name, layer in layers.items()
    }
    drawn = overlay("")
    assert (found["truth"] == 1 * drawn.truth_HW).all()
    assert (found["prediction"] == 2 * drawn.prediction_HW).all()
    [picture] = values["val/overlays.filenames"]
    assert not np.array(Image.open(log.parent / "files" / picture)).any(), "nothing is burnt in"


def test_artifacts_that_this_version_of_wandbs_takes_otherwise_cost_the_record_and_not_the_training(
    config: Config,
) -> None:
    notes: list[str] = []
    data = DataReference(open_store(config.data.shards))
    WandbRecord(Given(), 0, note=notes.append).lineage(data, {})
    [note] = notes
    assert "takes artifacts in a way that is not known here" in note
    assert "install wandb 0.31" in note
