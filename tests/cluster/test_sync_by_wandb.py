"""Logs sent by W&B's own client, to a server that stands in for W&B's."""

import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import wandb
from bucket import Bucket
from wandb_server import RunServer, run_server

from bts_dist import wandb_upload
from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.wandb_login import has_rows
from bts_dist.wandb_record import WandbRecord
from bts_dist.wandb_session import begin_wandb
from bts_dist.wandb_upload import RefusedError, find_records
from cluster.cli import guarded
from shards.store import LocalStore


def record_rows(folder: Path, first: int, last: int) -> Path:
    """A start's offline log, by W&B's own client; the folder that it lies in."""
    config = with_overrides(Config(), {"run.name": "run"})
    started = begin_wandb(config, folder, "a", "run")
    for step in range(first, last + 1):
        started.log({"loss": 1 / step}, step=step)
    WandbRecord(started, 0).finish(exit_code=0)
    return Path(started.dir).parent


def log_in(server: RunServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process and W&B's client use that server."""
    monkeypatch.setattr(wandb.setup().settings, "base_url", server.address)
    monkeypatch.setenv("WANDB_BASE_URL", server.address)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("HOME", str(home))


@pytest.mark.parametrize("store", [LocalStore, Bucket])
@pytest.mark.parametrize("kind", ["offline", "online, cut"])
def test_each_row_is_sent_once_at_its_own_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: type, kind: str
) -> None:
    """By W&B's own client; the server is a stand-in."""
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    first = record_rows(folder, 1, 4)
    record_rows(folder, 5, 6)
    run = LocalStore(str(folder), folder) if store is LocalStore else Bucket(folder)
    monkeypatch.setenv("WANDB_USERNAME", "canary-name")
    monkeypatch.setenv("WANDB_USER_EMAIL", "canary-name@example.org")
    with run_server() as server:
        log_in(server, tmp_path, monkeypatch)
        if kind == "online, cut":
            server.history = [{"_step": 1}, {"_step": 2}]
            first.rename(first.with_name("run-20260101_000000-a-abcdef"))
        for _ in range(2):
            for record in find_records(run):
                if record.waiting:
                    wandb_upload.upload(run, record, tmp_path / "scratch")
            assert server.steps == [1, 2, 3, 4, 5, 6]
            began = server.uploads
        assert server.uploads == began
    assert not [request for request in server.received if b"canary" in request], "nobody is named"
    assert list((tmp_path / "here").iterdir()) == [], "nothing is left where the command is given"
    assert [record.waiting for record in find_records(run)] == [()]


def test_a_log_cut_short_under_a_later_one_is_sent_up_to_its_last_whole_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By W&B's own client, which would stop at it for ever; the server is a stand-in."""
    first = record_rows(tmp_path / "run", 1, 4)
    record_rows(tmp_path / "run", 4, 6)
    [log] = first.glob("*.wandb")
    data = log.read_bytes()
    log.write_bytes(data[: data.rindex(b"loss") + 2])  # in the midst of the row of step 4
    run = LocalStore(str(tmp_path / "run"), tmp_path / "run")
    with run_server() as server:
        log_in(server, tmp_path, monkeypatch)
        [record] = find_records(run)
        wandb_upload.upload(run, record, tmp_path / "scratch")
        assert server.steps == [1, 2, 3, 4, 5, 6]


def test_what_the_server_refused_is_not_marked_and_is_sent_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By W&B's own client, which marks it all the same; the server is a stand-in."""
    record_rows(tmp_path / "run", 1, 2)
    run = LocalStore(str(tmp_path / "run"), tmp_path / "run")
    with run_server() as server:
        log_in(server, tmp_path, monkeypatch)
        server.refusal = 403
        monkeypatch.setattr(wandb_upload, "has_rows", partial(has_rows, within_s=1.0))
        [record] = find_records(run)
        with pytest.raises(RefusedError, match="Fatal error while uploading data"):
            wandb_upload.upload(run, record, tmp_path / "scratch")
        assert find_records(run) == [record]
        server.refusal = 0
        assert guarded(["sync", run.uri]) == 0
        assert server.steps == [1, 2]


def clients(home: Path) -> list[str]:
    """The numbers of the processes that have this home, W&B's own among them."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"HOME={home}\0".encode() in environment.read_bytes():
                found.append(environment.parent.name)
    return found


def test_an_upload_without_an_end_is_stopped_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """W&B's own client waits for ever for a server that answers questions and begins no run."""
    record_rows(tmp_path / "run", 1, 1)
    with run_server() as server:
        log_in(server, tmp_path, monkeypatch)
        server.open.clear()
        for limit_s in (3, 12, 48):  # on a busy machine W&B's client takes long to begin
            monkeypatch.setattr(wandb_upload, "LIMIT_S", limit_s - 0.5)
            assert guarded(["sync", str(tmp_path / "run")]) == 1
            said = capsys.readouterr()
            if server.uploads:
                break
        assert server.uploads
    assert "1/1 a: logs to upload: 1" in said.out
    error = " ".join(said.err.split())
    assert (
        f"run-a.wandb was not uploaded: wandb sync came to no end within {limit_s} s and was stopped" in error
    )
    assert "It said: " in error
    assert "setting up run a" in error
    deadline = time.monotonic() + 10
    while left := clients(home=tmp_path):
        assert time.monotonic() < deadline, f"{left} go on in the background"
        time.sleep(0.05)
