"""Ctrl-C while a job is being sent leaves none that nobody knows of: real signals, and a stand-in for the cluster."""

import json
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray
from interrupts import heed_interrupts

from bts_dist.config import Config
from cluster.interruption import interruption_held
from cluster.job_end import stop_interrupted
from cluster.job_log import JobLog
from cluster.submission import make_submission
from cluster.submit import run_job
from shards.errors import UnreachableError

NODES = [{"raylet": {"isHeadNode": True, "state": "ALIVE"}, "cmdline": []}]
PAGES: dict[str, Any] = {
    "/api/version": {"version": "4", "ray_version": ray.__version__},
    "/api/v0/cluster_metadata": {"data": {"pythonVersion": platform.python_version()}},
    "/nodes?view=summary": {"data": {"summary": NODES}},
    "/api/v0/nodes": {"data": {"result": {"result": []}}},
}


@dataclass
class StandIn:
    """A dashboard whose answer to one request comes when it is told to, and to others at once."""

    slow: str
    """The request, method and path, that waits."""
    began: threading.Event = field(default_factory=threading.Event)
    goes_on: threading.Event = field(default_factory=threading.Event)
    requests: list[str] = field(default_factory=list)
    jobs: dict[str, str] = field(default_factory=dict)
    """Status of each job."""
    url: str = ""

    def answer(self, request: str, body: bytes) -> tuple[int, object]:
        self.requests.append(request)
        if request.startswith(self.slow):
            self.began.set()
            assert self.goes_on.wait(60)
        method, path = request.split(" ", 1)
        if request == "POST /api/jobs/":
            job = json.loads(body)["submission_id"]
            self.jobs[job] = "RUNNING"
            return 200, {"job_id": job, "submission_id": job}
        if found := re.fullmatch(r"POST /api/jobs/(.*)/stop", request):
            self.jobs[found[1]] = "STOPPED"
            return 200, {"stopped": True}
        if (found := re.fullmatch(r"GET /api/jobs/([^/]*)", request)) and found[1] in self.jobs:
            status = self.jobs[found[1]]
            return 200, {"type": "SUBMISSION", "entrypoint": "", "submission_id": found[1], "status": status}
        if path.endswith("/logs"):
            return 200, {"logs": "its log\n"}
        if path.startswith("/api/packages/"):
            return (404 if method == "GET" else 200), {}
        return (200, PAGES[path]) if path in PAGES else (404, {})


@contextmanager
def stand_in(slow: str) -> Iterator[StandIn]:
    board = StandIn(slow)

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, page = board.answer(f"{self.command} {self.path}", body)
            text = json.dumps(page).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = _answer  # noqa: N815 - the names that the server looks for

        def log_message(self, format: str, *arguments: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        board.url = f"http://127.0.0.1:{running.server_port}"
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield board
        board.goes_on.set()
        running.shutdown()


@contextmanager
def submitting(board: StandIn, output: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """The command, once it stands in the slow request."""
    words = ["submit", "report", "--set=run.name=a", f"--address={board.url}", "--wait"]
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "cluster.cli", *words],
            stdout=file,
            stderr=file,
            preexec_fn=heed_interrupts,
        )
    try:
        assert board.began.wait(60), output.read_text()
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(text: str, output: Path) -> None:
    end = time.monotonic() + 30
    while text not in output.read_text():
        assert time.monotonic() < end, output.read_text()
        time.sleep(0.05)


def test_ctrl_c_in_the_upload_sends_no_job(tmp_path: Path) -> None:
    output = tmp_path / "output"
    with stand_in("PUT /api/packages/") as board, submitting(board, output) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        board.goes_on.set()
    assert not [request for request in board.requests if request.startswith("POST")]
    assert "interrupted" in output.read_text().splitlines()[-1]


def test_a_job_on_its_way_is_stopped_when_it_has_arrived(tmp_path: Path) -> None:
    output = tmp_path / "output"
    with stand_in("POST /api/jobs/") as board, submitting(board, output) as process:
        process.send_signal(signal.SIGINT)
        wait_for("is on its way and is stopped when it has arrived", output)
        assert process.poll() is None
        board.goes_on.set()
        assert process.wait(30) == 130
    ((job, status),) = board.jobs.items()
    assert status == "STOPPED"
    assert f"stopping the job {job}" in output.read_text()


def test_a_second_ctrl_c_leaves_at_once_and_names_what_stops_the_job(tmp_path: Path) -> None:
    output = tmp_path / "output"
    with stand_in("POST /api/jobs/") as board, submitting(board, output) as process:
        process.send_signal(signal.SIGINT)
        wait_for("Ctrl-C again", output)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        board.goes_on.set()
        text = output.read_text()
    job = re.search(r"job (report-[0-9a-f]{8}): ", text)
    assert job, text
    assert f"left; the job {job[1]} may have started all the same" in text
    assert f"`bts stop {job[1]} --address {board.url}` ends it" in text


class Silent:
    """A dashboard that takes the code and answers nothing more."""

    url = "http://head:8265"

    def read(self, path: str) -> Any:
        return PAGES[path]["data"]

    def upload(self, folder: Path) -> str:
        return "gcs://code.zip"

    def submit_job(self, **request: object) -> str:
        raise UnreachableError("no Ray dashboard answers")

    def stop_job(self, job: str) -> bool:
        raise UnreachableError("no Ray dashboard answers")


def test_a_lost_answer_names_what_stops_the_job(config: Config) -> None:
    board: Any = Silent()
    with pytest.raises(
        UnreachableError, match=r"the job train-\w{8} may have started all the same: .*`bts stop train-"
    ):
        run_job(make_submission("train", config), board, wait=True)
    with pytest.raises(
        RuntimeError, match=r"train-1 was not told to stop: no Ray .*\n`bts stop train-1 --address http"
    ):
        stop_interrupted(JobLog(board, "train-1"))


def interrupted(times: int, done: list[str], error: Exception | None = None) -> None:
    with interruption_held(lambda: done.append("told")):
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)
        done.append("finished")
        if error is not None:
            raise error


def test_a_held_ctrl_c_comes_at_the_end_and_a_second_one_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    done: list[str] = []
    interrupted(0, done)
    with pytest.raises(KeyboardInterrupt):
        interrupted(1, done)
    with pytest.raises(KeyboardInterrupt):
        interrupted(2, done)
    # What went wrong is told, whatever else happened.
    with pytest.raises(ZeroDivisionError):
        interrupted(1, done, ZeroDivisionError())
    assert done == ["finished", "told", "finished", "told", "told", "finished"]
    assert signal.getsignal(signal.SIGINT) is before


def test_where_ctrl_c_is_ignored_it_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    done: list[str] = []
    try:
        interrupted(3, done)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert done == ["finished"]
