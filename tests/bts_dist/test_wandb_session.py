"""W&B out of reach: real sockets that refuse, or accept and never answer; the record is then an offline one, soon."""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb_log import read_all
from wandb_server import LINEAGE, run_server

from bts_dist import wandb_session
from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.track import read_metrics
from bts_dist.wandb_login import LoginError
from bts_dist.wandb_session import begin_wandb
from bts_dist.wandb_upload import find_records, upload
from shards.errors import InputError
from shards.store import LocalStore

DELAY_S = 5.0
"""A start is delayed by less."""

SCRIPT = """
import json, sys, time
from pathlib import Path
import wandb
from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.wandb_session import begin_wandb

config = with_overrides(Config(), {"track.wandb": "online", "run.name": "run"})
notes = []
began = time.monotonic()
run = begin_wandb(config, Path(sys.argv[1]), "id", "run", notes.append)
took = time.monotonic() - began
run.log({"loss": 0.5}, step=1)
run.finish()
print(json.dumps({"offline": run.offline, "took": took, "notes": notes}))
"""


@contextmanager
def refusing() -> Iterator[str]:
    """A port at which nobody listens."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{closed.getsockname()[1]}"


@contextmanager
def silent() -> Iterator[str]:
    """A server that accepts and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def broken() -> Iterator[str]:
    """A server that says who it speaks to and has an error for all else, so that W&B tries again and again."""

    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            who = b"Viewer" in self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200 if who else 503)
            self.end_headers()
            self.wfile.write(b'{"data": {"viewer": {"username": "marie"}}}' if who else b"")

        def log_message(self, format: str, *args: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
    assert set(asked) == {"/graphql"}, "no reports of errors, no telemetry"


def begun(
    folder: Path, url: str, script: str = SCRIPT, given: str = "", **environment: str
) -> dict[str, Any]:
    """What a fresh process says that begins a W&B run online; W&B reads its environment once."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        env=variables | {"WANDB_BASE_URL": url, "HOME": str(folder / "home"), **environment},
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


@contextmanager
def slow() -> Iterator[str]:
    """A server that knows who it speaks to, and takes its time for every answer."""
    with run_server() as server:
        server.delay_s = 1.8
        yield server.address


@pytest.mark.parametrize("server", [refusing, silent, broken, slow], ids=lambda server: server.__name__)
def test_out_of_reach_delays_the_start_by_seconds_and_leaves_an_offline_record(
    server: Any, tmp_path: Path
) -> None:
    with server() as url:
        said = begun(tmp_path, url, WANDB_API_KEY="0" * 40)
    assert said["offline"]
    assert said["took"] < DELAY_S
    [note] = said["notes"]
    assert "recording offline, `bts sync` uploads it later" in note
    if server in (refusing, silent):
        assert f"{url} does not answer" in note
    assert len(list(tmp_path.glob("wandb/offline-run-*/run-id.wandb"))) == 1
    assert list(tmp_path.glob("wandb/run-*")) == [], "nothing is left of the start that failed"


def test_a_start_whose_time_is_up_is_an_offline_one(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the machine was busy while the server was asked: W&B's process waits without end if given 0 s."""
    asked: list[tuple[str, float]] = []

    def init(*, mode: str, settings: wandb.Settings, **_: object) -> str:
        asked.append((mode, settings.init_timeout))
        if mode == "online":
            raise TimeoutError("Timed out waiting for response on abc")
        return "offline run"

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb_session, "leave", lambda: None)
    monkeypatch.setattr(wandb_session, "START_S", 0.1)
    monkeypatch.setattr(wandb_session, "check_login", lambda within_s: time.sleep(0.2))
    notes: list[str] = []
    online = with_overrides(config, {"track.wandb": "online"})
    assert begin_wandb(online, tmp_path, "id", "run", notes.append) == "offline run"
    assert [mode for mode, _ in asked] == ["online", "offline"]
    assert asked[0][1] == pytest.approx(0.5)
    assert notes == [
        "W&B: Timed out waiting for response on abc; recording offline, `bts sync` uploads it later"
    ]


def test_a_setting_of_wandbs_that_is_not_valid_is_refused(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_settings() -> None:
        raise LoginError("W&B's setting base_url is not valid; mend WANDB_BASE_URL")

    monkeypatch.setattr(wandb_session, "load_settings", load_settings)
    with pytest.raises(
        InputError, match=r"base_url is not valid; mend WANDB_BASE_URL; or set track\.wandb=disabled"
    ):
        begin_wandb(with_overrides(config, {"track.wandb": "offline"}), tmp_path, "id", "run")


def test_who_is_not_logged_in_is_told_how_to_be(tmp_path: Path) -> None:
    with refusing() as url:
        said = begun(tmp_path, url)
    assert said["offline"]
    assert f"not logged in to {url}; run `wandb login --host {url}`, or set WANDB_API_KEY" in said["notes"][0]


TRAINING = """
import json, sys, torch
from pathlib import Path
from bts_dist.config import Config
from bts_dist.compose import with_overrides
from bts_dist.runtime import LocalRuntime
from bts_dist.train import train
from shards.store import LocalStore

root = Path(sys.argv[1])
config = with_overrides(Config.model_validate_json(sys.stdin.read()), {"track.wandb": "online"})
progress = train(config, LocalRuntime(0, 1, 0, torch.device("cpu")), LocalStore(str(root), root), root)
print(json.dumps({"epochs": progress.epoch, "id": progress.wandb_id, "steps": progress.step}))
"""


def test_training_goes_on_without_the_server(config: Config, tmp_path: Path) -> None:
    with silent() as url:
        said = begun(tmp_path, url, script=TRAINING, given=config.model_dump_json(), WANDB_API_KEY="0" * 40)
    assert said["epochs"] == 2
    [log] = read_all(tmp_path, said["id"])
    assert [row["_step"] for row in log.history] == list(range(1, said["steps"] + 1))
    assert {artifact.kind for artifact in log.artifacts} == {"dataset", "model"}
    notes = [row["text"] for row in read_metrics(LocalStore(str(tmp_path), tmp_path), "note")]
    assert notes[0].startswith(f"W&B: {url} does not answer (nothing within 2 s); see that")


STAGES = """
import json, sys, time
from pathlib import Path
from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.run import open_run
from bts_dist.wandb_search import mark_best, record_search
from bts_dist import wandb_session
from bts_dist.wandb_stages import record_pack, record_score

settings = {"track.wandb": "online", "track.group": "group", "run.dir": sys.argv[1], "run.name": "run"}
config = with_overrides(Config.model_validate_json(sys.stdin.read()), settings)
run = open_run(config)
rows = [{"trial": 0, "optim.lr": 0.1, "scores": [], "error": None}]
result = {"metrics": {}, "patients": [{"patient": "a", "dice": 0.5}]}
for name in ("score.json", "patients.csv"):
    run.put(f"score/{name}", b"")
said, waits, check_login = {}, [], wandb_session.check_login

def timed(within_s):
    began = time.monotonic()
    try:
        return check_login(within_s)
    finally:
        waits.append(time.monotonic() - began)

wandb_session.check_login = timed

def search(note):
    reached = record_search(config, run, run.root, rows, 0, note)
    mark_best(with_overrides(config, {"run.name": "0000"}), reached=reached)

def stage(name, work):
    waits.clear()
    notes = []
    work(notes.append)
    said[name] = [list(waits), notes]

stage("pack", lambda note: record_pack(config, note))
stage("search", search)
stage("score", lambda note: record_score(config, run, "score", result, [], None, note))
print(json.dumps(said))
"""


def test_every_stage_says_so_once_and_soon(config: Config, tmp_path: Path) -> None:
    with silent() as url:
        said = begun(tmp_path, url, script=STAGES, given=config.model_dump_json(), WANDB_API_KEY="0" * 40)
    assert set(said) == {"pack", "search", "score"}
    for stage, (waits, notes) in said.items():
        [note] = notes
        assert f"{url} does not answer" in note, stage
        [wait] = waits  # it is all that the silence costs: the record is an offline one from there on
        assert wait < DELAY_S, stage
    assert len(list(tmp_path.glob("*/wandb/offline-run-*/run-*.wandb"))) == 4


LIVE = SCRIPT.replace("run.finish()\n", f"{LINEAGE}record.finish(exit_code=0)\n").replace(
    "config =",
    "from bts_dist import wandb_record, wandb_session\n"
    "wandb_record.FINISH_S = wandb_session.FINISH_S = 2.0\nconfig =",
    1,
)


@pytest.mark.parametrize("status", [400, 403])
def test_a_live_record_that_the_server_refused_waits(status: int, tmp_path: Path) -> None:
    """By W&B's own client, which ends in good order all the same; the server is a stand-in."""
    with run_server() as server:
        server.refusal = status
        assert not begun(tmp_path, server.address, script=LIVE, WANDB_API_KEY="0" * 40)["offline"]
        assert server.steps == []
    [record] = find_records(LocalStore(str(tmp_path), tmp_path))
    assert (len(record.uploaded), len(record.waiting)) == (0, 1)


@pytest.mark.parametrize("cut", [False, True])
def test_a_live_record_waits_if_the_connection_broke_and_is_marked_if_not(
    cut: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By W&B's own client; the server is a stand-in."""
    run = LocalStore(str(tmp_path), tmp_path)
    told = ({"data-d", "model-m"}, {"data-d"})
    with run_server() as server:
        server.cut = cut
        said = begun(tmp_path, server.address, script=LIVE, WANDB_API_KEY="0" * 40)
        assert (said["offline"], said["notes"]) == (False, [])
        assert server.steps == ([] if cut else [1])
        [record] = find_records(run)
        assert (len(record.uploaded), len(record.waiting), record.growing) == (1 - cut, cut, ())
        [log] = read_all(tmp_path, "id")
        assert [(artifact.name, artifact.used) for artifact in log.artifacts] == [
            ("data-d", True),
            ("model-m", False),
        ]
        assert (server.artifacts, server.used) == (told if not cut else (set(), set()))
        if cut:
            server.cut = False
            monkeypatch.setattr(wandb.setup().settings, "base_url", server.address)
            monkeypatch.setenv("WANDB_BASE_URL", server.address)
            monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
            monkeypatch.setenv("HOME", str(tmp_path))
            upload(run, record, tmp_path / "scratch")
            assert server.steps == [1]
            assert (server.artifacts, server.used) == told
            assert find_records(run)[0].waiting == ()
