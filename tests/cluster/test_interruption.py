"""Ctrl-C while a job is being sent leaves none that nobody knows of: real signals, and a stand-in for the cluster."""

import json
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray
from interrupts import heed_interrupts

from bts_dist.config import Config
from cluster import job_log
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
    """A pattern for the beginning of the requests, method and path, that wait."""
    began: threading.Event = field(default_factory=threading.Event)
    goes_on: threading.Event = field(default_factory=threading.Event)
    requests: list[str] = field(default_factory=list)
    jobs: dict[str, str] = field(default_factory=dict)
    """Status of each job."""
    url: str = ""

    def answer(self, request: str, body: bytes) -> tuple[int, object]:
        self.requests.append(request)
        if re.match(self.slow, request):
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
def submitting(
    board: StandIn, output: Path, answer_s: float | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """The command, once it stands in the slow request, for whose answer it waits ``answer_s`` at most."""
    words = ["submit", "report", "--set=run.name=a", f"--address={board.url}", "--wait"]
    code = "" if answer_s is None else f"from cluster import dashboard; dashboard.ANSWER_S = {answer_s}; "
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", f"{code}from cluster import cli; cli.main({words!r})"],
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


def wait_for_request(pattern: str, board: StandIn, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not any(re.fullmatch(pattern, request) for request in board.requests):
        assert time.monotonic() < end, board.requests
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


LOOK = "GET /api/jobs/[^/]*"
"""The look at the job, which the command takes beside its log."""
STOP = "POST /api/jobs/.*/stop"


def test_ctrl_c_stops_a_job_whose_head_does_not_answer_and_a_second_one_leaves(tmp_path: Path) -> None:
    output = tmp_path / "output"
    with stand_in("GET /api/jobs/") as board, submitting(board, output) as process:
        wait_for_request(LOOK, board)
        process.send_signal(signal.SIGINT)
        # Long before the look, which is held for a minute, has its answer.
        wait_for_request(STOP, board, 20)
        wait_for("stopping the job", output)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        text = output.read_text()
    ((job, status),) = board.jobs.items()
    assert status == "STOPPED"
    assert f"stopping the job {job}" in text
    assert f"left; the job was told to stop, which `bts jobs --address {board.url}` shows" in text
    assert "Exception ignored" not in text
    assert "Traceback" not in text


def test_ctrl_c_where_no_answer_comes_at_all_ends_and_names_what_stops_the_job(tmp_path: Path) -> None:
    output = tmp_path / "output"
    with stand_in(f"GET /api/jobs/|{STOP}") as board, submitting(board, output, answer_s=2) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        text = output.read_text()
    (job,) = board.jobs
    assert f"left; the job {job} may go on: `bts stop {job} --address {board.url}` stops it" in text
    assert text.splitlines()[-1].startswith("interrupted")
    assert "Traceback" not in text


def test_a_second_ctrl_c_does_not_wait_for_the_answer_to_stop(tmp_path: Path) -> None:
    output = tmp_path / "output"
    with stand_in(f"GET /api/jobs/|{STOP}") as board, submitting(board, output) as process:
        process.send_signal(signal.SIGINT)
        wait_for_request(STOP, board)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        text = output.read_text()
    (job,) = board.jobs
    assert f"left; the job {job} may go on: `bts stop {job} --address {board.url}` stops it" in text
    assert "Traceback" not in text


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


def test_a_lost_answer_names_what_stops_the_job(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    board: Any = Silent()
    with pytest.raises(
        UnreachableError, match=r"the job train-\w{8} may have started all the same: .*`bts stop train-"
    ):
        run_job(make_submission("train", config), board, wait=True)
    stop_interrupted(JobLog(board, "train-1"))
    told = capsys.readouterr().err.splitlines()
    assert told[-2] == "no Ray dashboard answers"
    assert told[-1] == f"left; the job train-1 may go on: `bts stop train-1 --address {board.url}` stops it"


def test_a_job_told_to_stop_whose_end_cannot_be_seen_is_one_that_was_interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Told(Silent):
        def stop_job(self, job: str) -> bool:
            return True

        def get_job_info(self, job: str) -> Any:
            raise UnreachableError("no Ray dashboard answers")

        async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
            raise TimeoutError
            yield ""

    monkeypatch.setattr(job_log, "OUTAGE_S", 0)
    board: Any = Told()
    stop_interrupted(JobLog(board, "train-1"))
    told = capsys.readouterr().err.splitlines()
    assert told[-1] == f"left; the job was told to stop, which `bts jobs --address {board.url}` shows"


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
