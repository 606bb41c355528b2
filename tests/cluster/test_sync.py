"""`bts sync`: what is found, what waits, and what is sent in which order."""

import json
import os
import shutil
import socket
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import wandb
from bucket import Bucket
from google.protobuf.timestamp_pb2 import Timestamp
from wandb.proto import wandb_internal_pb2 as proto

import cluster.sync_stage
from bts_dist import lease, wandb_upload
from bts_dist.lease import Owner, own, writing
from bts_dist.wandb_upload import LeftRecord, RefusedError, find_records
from cluster.cli import guarded
from shards.store import LocalStore

Record = proto.Record
HEADER = b":W&B\xe1\xbe\x00"


def log_bytes(*, ended: bool, step: int = 0, started: int = 0) -> bytes:
    records = [Record(run=proto.RunRecord(run_id="id", start_time=Timestamp(seconds=started)))]
    records += [Record(history=proto.HistoryRecord(step=proto.HistoryStep(num=step)))] if step else []
    records += [Record(exit=proto.RunExitRecord(exit_code=0))] if ended else []
    data = HEADER
    for record in records:
        content = record.SerializeToString()
        data += struct.pack("<IHB", zlib.crc32(b"\x01" + content), len(content), 1) + content
    return data


def add_log(
    run: LocalStore,
    below: str,
    second: int,
    wandb_id: str,
    *,
    ended: bool = True,
    step: int = 0,
    kind: str = "offline-run",
    started: int | None = None,
) -> str:
    key = f"{below}wandb/{kind}-20260101_0000{second:02d}-{wandb_id}-abcdef/run-{wandb_id}.wandb"
    run.put(key, log_bytes(ended=ended, step=step, started=second if started is None else started))
    return key


@pytest.fixture
def run(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "run"), tmp_path / "run")


@pytest.fixture
def _server_that_refuses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setattr(wandb.setup().settings, "base_url", url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        yield


def accept(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Let every upload succeed as ``wandb sync`` shows it, and give what was uploaded, in its order."""
    sent: list[list[str]] = []

    def sync(run: LocalStore, record: LeftRecord, scratch: Path) -> None:
        sent.append(list(record.waiting))
        for key in record.waiting:
            run.put(f"{key}.synced", b"")

    monkeypatch.setattr(cluster.sync_stage, "upload", sync)
    monkeypatch.setattr(cluster.sync_stage, "check_login", lambda: None)
    return sent


def test_records_are_found_below_the_run_in_the_order_in_which_they_were_begun(run: LocalStore) -> None:
    train = [add_log(run, "", second, "a") for second in (3, 20)]
    pack = add_log(run, "", 1, "a-pack")
    trial = add_log(run, "tune/0123/trials/0000/", 9, "b")
    fold = add_log(run, "folds/fold-1/", 30, "c")
    (run.root / "wandb" / "latest-run").symlink_to((run.root / train[1]).parent)
    records = find_records(run)
    assert [record.wandb_id for record in records] == ["a-pack", "a", "b", "c"]
    assert [record.waiting for record in records] == [(pack,), tuple(train), (trial,), (fold,)]


def test_a_log_without_an_end_waits_unless_a_later_start_took_note_of_it(run: LocalStore) -> None:
    killed = add_log(run, "", 1, "a", ended=False, step=4)
    after = add_log(run, "", 2, "a", step=5)
    open_log = add_log(run, "", 3, "b", ended=False)
    first, second = find_records(run)
    assert (first.waiting, first.growing) == ((killed, after), ())
    assert (second.waiting, second.growing) == ((open_log,), (open_log,))


def test_starts_are_in_the_order_of_their_rows_and_else_of_their_times(run: LocalStore) -> None:
    """As clocks that are set back and machines of other zones name the folders."""
    third = add_log(run, "", 1, "a", step=9, started=31)
    first = add_log(run, "", 3, "a", step=4, started=10)
    second = add_log(run, "", 2, "a", step=6, started=32)
    tag = add_log(run, "", 0, "a", started=40)
    other = add_log(run, "", 9, "b", started=5)
    before, record = find_records(run)
    assert before.waiting == (other,)
    assert record.waiting == (first, second, third, tag)


def test_every_log_without_an_end_that_may_be_written_is_asked_about(
    run: LocalStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The living one has the older name; what follows it waits with it."""
    before = add_log(run, "", 1, "a", step=2)
    growing = add_log(run, "", 2, "a", ended=False)
    after = add_log(run, "", 3, "a")
    sent = accept(monkeypatch)
    with own(run, lambda _: None):
        assert guarded(["sync", run.uri]) == 0
        assert f"{growing} has no end: process {os.getpid()} on" in capsys.readouterr().out
    assert sent == [[before]]
    assert guarded(["sync", run.uri]) == 0
    assert sent[1:] == [[growing, after]]


def test_a_log_that_a_stage_is_writing_is_left_alone(
    run: LocalStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The training has ended, and a stage owns nothing."""
    key = add_log(run, "tune/0123/", 1, "a", ended=False, step=1)
    sent = accept(monkeypatch)
    with own(run, lambda _: None):
        pass
    with writing(LocalStore("", run.root / "tune/0123"), "a"):
        assert guarded(["sync", run.uri]) == 0
    assert f"has no end: process {os.getpid()} on" in capsys.readouterr().out
    assert sent == []
    assert guarded(["sync", run.uri]) == 0
    assert sent == [[key]]


def test_a_dead_owner_elsewhere_is_watched_once(
    run: LocalStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lease, "PATIENCE_S", 0.1)
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    run.put("owners/000001.json", json.dumps(asdict(Owner("gpu-7", "another", 4711, "1"))).encode())
    trials = [add_log(run, f"tune/0123/trials/000{n}/", n, f"t{n}", ended=False) for n in range(3)]
    sent = accept(monkeypatch)
    assert guarded(["sync", run.uri]) == 0
    assert sent == [[trial] for trial in trials]
    assert capsys.readouterr().out.count("gpu-7 was at work on this run; looking for") == 1


def test_a_refused_record_does_not_hold_up_the_others(
    run: LocalStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for second, name in enumerate(("a", "b", "c")):
        add_log(run, "", second, name)
    tried: list[str] = []

    def refuse(_: object, record: LeftRecord, scratch: Path) -> None:
        tried.append(record.wandb_id)
        if record.wandb_id != "b":
            raise RefusedError(f"{record.wandb_id} was not uploaded; wandb sync said: [p/a] no")

    accept(monkeypatch)
    monkeypatch.setattr(cluster.sync_stage, "upload", refuse)
    assert guarded(["sync", run.uri]) == 1
    assert tried == ["a", "b", "c"]
    said = capsys.readouterr()
    assert "2 of 3 W&B runs were refused; the first: a was not uploaded" in " ".join(said.err.split())
    assert (
        "  1/3 a: logs to upload: 1\n  1/3 a: a was not uploaded; wandb sync said: [p/a] no\n  2/3 b: "
        in said.out
    )
    assert "2/3 b: uploaded" in said.out


def test_an_online_start_that_trained_has_given_what_earlier_ones_lacked(run: LocalStore) -> None:
    add_log(run, "", 1, "a", step=4)
    add_log(run, "", 2, "a", step=8, kind="run")
    cut = add_log(run, "", 3, "a", step=12, kind="run", ended=False)
    late = add_log(run, "", 4, "a", step=16)
    [record] = find_records(run)
    assert (record.waiting, record.uploaded) == ((cut, late), ())


def test_an_online_start_that_only_tagged_the_run_has_given_nothing(run: LocalStore) -> None:
    trial = add_log(run, "", 1, "a", step=4, kind="run")
    tag = add_log(run, "", 2, "a", kind="run")
    run.put(f"{tag}.synced", b"")
    [record] = find_records(run)
    assert (record.waiting, record.uploaded) == ((trial,), (tag,))


@pytest.mark.parametrize("kind", ["offline-run", "run"])
def test_a_log_without_an_end_is_sent_when_its_writer_is_gone(
    run: LocalStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    key = add_log(run, "tune/0123/trials/0000/", 1, "a", ended=False, kind=kind)
    whole = run.get(key)
    run.put(key, whole + b"cut sho")
    sent = accept(monkeypatch)
    assert guarded(["sync", run.uri]) == 0
    assert "nothing here tells who wrote it; give its command again" in capsys.readouterr().out
    with own(run, lambda _: None):
        assert guarded(["sync", run.uri]) == 0
        assert f"has no end: process {os.getpid()} on" in capsys.readouterr().out
    assert sent == []
    for _ in range(2):
        assert guarded(["sync", run.uri]) == 0
    assert sent == [[key]]
    assert run.get(key) == whole + b"cut sho"


def test_a_log_without_a_beginning_is_none(run: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "wandb/offline-run-20260101_000001-a-abcdef/run-a.wandb"
    run.put(key, HEADER)
    with own(run, lambda _: None):
        pass
    sent = accept(monkeypatch)
    assert guarded(["sync", run.uri]) == 0
    assert sent == []
    assert [record.waiting for record in find_records(run)] == [()]


def test_what_was_sent_is_not_sent_again(
    run: LocalStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [add_log(run, "", second, name) for second, name in enumerate(("a-pack", "a", "a-score"))]
    sent = accept(monkeypatch)
    assert guarded(["sync", run.uri]) == 0
    assert sent == [[key] for key in keys]
    assert "3 W&B runs uploaded, 0 with nothing to upload" in capsys.readouterr().out
    assert guarded(["sync", run.uri]) == 0
    assert len(sent) == 3
    later = add_log(run, "", 9, "a")
    assert guarded(["sync", run.uri]) == 0
    assert sent[3:] == [[later]]


@pytest.mark.usefixtures("_server_that_refuses")
def test_a_server_out_of_reach_is_one_line_and_nothing_is_marked(
    run: LocalStore, capsys: pytest.CaptureFixture[str]
) -> None:
    add_log(run, "", 1, "a")
    assert guarded(["sync", run.uri]) == 1
    error = capsys.readouterr().err
    assert "1 records wait in" in error
    assert "does not answer (Connection refused); see that" in " ".join(error.split())
    assert "Traceback" not in error
    assert find_records(run)[0].uploaded == ()


@pytest.mark.usefixtures("_server_that_refuses")
def test_nobody_is_asked_when_nothing_waits(run: LocalStore) -> None:
    key = add_log(run, "", 1, "a")
    run.put(f"{key}.synced", b"")
    assert guarded(["sync", run.uri]) == 0


def test_a_run_without_records_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(["sync", str(tmp_path / "nothing")]) == 2
    assert "has no W&B records" in capsys.readouterr().err
    assert guarded(["sync"]) == 2
    assert "say which run to upload" in capsys.readouterr().err


def test_what_wandb_says_is_told_when_it_uploads_nothing(
    run: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real ``wandb sync``, which finds no key."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(wandb_upload, "last_step", lambda *_: 0)
    add_log(run, "", 1, "a")
    [record] = find_records(run)
    with pytest.raises(RuntimeError, match=r"was not uploaded; wandb sync said: .*wandb login"):
        wandb_upload.upload(run, record, tmp_path / "scratch")


def test_from_object_storage_the_records_are_fetched_and_the_marks_put_back(
    run: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = add_log(run, "", 1, "a")
    run.put(key.rpartition("/")[0] + "/files/media/images/x.png", b"picture")
    size = len(run.get(key)) + len(b"picture")
    bucket = Bucket(tmp_path / "bucket")
    shutil.move(run.root, tmp_path / "bucket")
    limits: list[float] = []

    def sync(log: Path, scratch: Path, limit_s: float) -> str:
        limits.append(limit_s)
        assert (log.parent / "files/media/images/x.png").read_bytes() == b"picture"
        log.with_suffix(".wandb.synced").touch()
        return ""

    monkeypatch.setattr(wandb_upload, "_wandb_sync", sync)
    monkeypatch.setattr(wandb_upload, "last_step", lambda *_: 0)
    [record] = find_records(bucket)
    wandb_upload.upload(bucket, record, tmp_path / "scratch")
    assert limits == [pytest.approx(wandb_upload.LIMIT_S + size / wandb_upload.SLOWEST)]
    assert [entry.key for entry in bucket.list() if entry.key.endswith(".synced")] == [f"{key}.synced"]
