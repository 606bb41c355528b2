"""A machine that will be taken away tells Ray, once and in time."""

import json
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.client import HTTPException, HTTPMessage, IncompleteRead
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import HTTPError, URLError

import pytest
import yaml
from cluster_files import AWS, KUBERAY
from ray.scripts.scripts import drain_node

from cluster import notice
from cluster.notice import leave, raylet_id, spot_seconds, trains, watch_spot
from shards.errors import InputError

NODE = "ab" * 28


class Metadata(BaseHTTPRequestHandler):
    """AWS's metadata service, as its user guide describes it: a token first, then 404 until there is a notice."""

    action: ClassVar[Any] = None

    def do_PUT(self) -> None:
        allowed = self.path == "/latest/api/token" and "X-aws-ec2-metadata-token-ttl-seconds" in self.headers
        self._reply(200 if allowed else 400, "token")

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != "token":
            self._reply(401)
        elif self.path == "/latest/meta-data/spot/instance-action" and self.action is not None:
            self._reply(200, json.dumps(self.action))
        else:
            self._reply(404)

    def _reply(self, code: int, text: str = "") -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is told."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Metadata)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_aws_says_nothing_until_it_takes_the_machine_back(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert spot_seconds(endpoint) is None
    monkeypatch.setattr(Metadata, "action", {"action": "terminate", "time": "2026-01-01T00:02:00Z"})
    assert spot_seconds(endpoint, now=lambda: 1767225600.0) == 120.0


@pytest.mark.parametrize("action", [{"action": "hibernate"}, [], "soon", {"time": 5}, {"time": "soon"}])
def test_a_notice_of_another_form_raises_what_is_heeded(
    endpoint: str, monkeypatch: pytest.MonkeyPatch, action: Any
) -> None:
    monkeypatch.setattr(Metadata, "action", action)
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        spot_seconds(endpoint)


def test_a_notice_is_passed_on_once_with_time_to_spare() -> None:
    answers: Iterator[float | None] = iter([None, None, 119.5])
    told: list[tuple[str, int]] = []
    waits: list[float] = []
    watch_spot(lambda: NODE, lambda: next(answers), lambda *n: told.append(n), waits.append)
    assert told == [(NODE, 109)]
    assert waits == [notice.LOOK_S] * 2


@pytest.mark.parametrize(
    "failure",
    [
        TimeoutError(),
        URLError("no route"),
        HTTPError("http://169.254.169.254", 503, "busy", HTTPMessage(), None),
        ConnectionResetError(),
        IncompleteRead(b"{"),
        json.JSONDecodeError("cut short", "{", 1),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_a_service_that_fails_is_asked_again(failure: Exception) -> None:
    answers: Iterator[Exception | float] = iter([failure, 60.0])

    def left() -> float | None:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    told: list[tuple[str, int]] = []
    watch_spot(lambda: NODE, left, lambda *n: told.append(n), lambda _: None)
    assert told == [(NODE, 50)]


@pytest.mark.parametrize(
    "broken", ["", "HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\nto", "nonsense\r\n\r\n"]
)
def test_a_service_that_breaks_off_raises_what_is_heeded(broken: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(broken.encode())

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises((OSError, HTTPException)):
            spot_seconds(f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join()


class Clock:
    """A clock that goes on by what is waited."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def wait(self, seconds: float) -> None:
        self.seconds += seconds


class Deaf:
    """Ray, which takes a notice only when it is told for the last of so many times; a timeout takes its time."""

    def __init__(self, *failures: Exception, clock: Clock | None = None) -> None:
        self.failures = list(failures)
        self.clock = clock
        self.told: list[int] = []

    def __call__(self, node: str, seconds: int) -> None:
        self.told.append(seconds)
        if self.failures:
            failure = self.failures.pop(0)
            if self.clock is not None and isinstance(failure, subprocess.TimeoutExpired):
                self.clock.wait(failure.timeout)
            raise failure


FAILURES = (subprocess.CalledProcessError(1, "ray"), subprocess.TimeoutExpired("ray", 20), OSError("no ray"))


def test_a_notice_that_ray_does_not_take_is_given_again_with_the_time_there_still_is() -> None:
    left = iter([120.0, 115.0, 110.0, 105.0])
    ray = Deaf(*FAILURES)
    watch_spot(lambda: NODE, lambda: next(left), ray, lambda _: None)
    assert ray.told == [110, 105, 100, 95]


def test_a_pod_tells_ray_again_too() -> None:
    busy = iter([True] * 6 + [False])
    clock = Clock()
    ray = Deaf(*FAILURES, clock=clock)
    leave(100, lambda: NODE, lambda: next(busy), ray, clock.wait, clock.now)
    # The deadline that Ray is told is always the same moment.
    assert ray.told == [100, 99, 78, 77]


def test_a_pod_whose_ray_hangs_waits_no_longer_than_it_may() -> None:
    clock = Clock()
    ray = Deaf(*[subprocess.TimeoutExpired("ray", 20)] * 9, clock=clock)
    leave(100, lambda: NODE, lambda: True, ray, clock.wait, clock.now)
    assert ray.told == [100, 79, 58, 37, 16]
    assert 100 <= clock.seconds < 121


def test_ray_has_no_longer_to_accept_a_notice_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []
    monkeypatch.setattr(notice.subprocess, "run", lambda command, *, timeout, **_: limits.append(timeout))
    for seconds in (100, 5, 0):
        notice.drain(NODE, seconds)
    assert limits == [20, 5, 1]


def test_the_watch_ends_with_ray() -> None:
    nodes: Iterator[str | None] = iter([NODE, NODE, None])
    waits: list[float] = []
    watch_spot(lambda: next(nodes), lambda: None, lambda *_: pytest.fail("nothing to tell"), waits.append)
    assert len(waits) == 2


def test_a_pod_stays_while_it_trains() -> None:
    busy = iter([True, True, True, False])
    told: list[tuple[str, int]] = []
    clock = Clock()
    leave(100, lambda: NODE, lambda: next(busy), lambda *n: told.append(n), clock.wait, clock.now)
    assert told == [(NODE, 100)]
    assert clock.seconds == 2


def test_a_pod_stays_no_longer_than_it_may() -> None:
    clock = Clock()
    leave(7, lambda: NODE, lambda: True, lambda *_: None, clock.wait, clock.now)
    assert clock.seconds == 7


@pytest.mark.parametrize(("node", "busy"), [(None, True), (NODE, False)])
def test_a_pod_that_does_not_train_goes_at_once(node: str | None, busy: bool) -> None:
    leave(100, lambda: node, lambda: busy, lambda *_: pytest.fail("told"), lambda _: pytest.fail("waited"))


def test_ray_is_found_among_the_processes(tmp_path: Path) -> None:
    assert raylet_id(tmp_path) is None
    assert not trains(tmp_path)
    for pid, command in (("7", f"/ray/raylet\0--node-id={NODE}\0--x"), ("8", "ray::RayTrainWorker.run\0")):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "cmdline").write_text(command)
    (tmp_path / "9").mkdir()  # has just ended
    assert raylet_id(tmp_path) == NODE
    assert trains(tmp_path)


def test_ray_knows_the_command_by_which_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    # Hidden from Ray's help: another version may not have it.
    given: list[list[str]] = []
    monkeypatch.setattr(notice.subprocess, "run", lambda command, **_: given.append(command))
    notice.drain(NODE, 100)
    ((_, name, *arguments),) = given
    assert name == drain_node.name
    context = drain_node.make_context("drain-node", arguments)
    assert context.params["node_id"] == NODE
    assert context.params["deadline_remaining_seconds"] == 100


def test_the_files_call_it_as_it_is() -> None:
    called = re.findall(r"cluster\.notice ([a-z]+)", AWS.read_text(encoding="utf-8"))
    (cluster,) = yaml.safe_load_all((KUBERAY / "cluster.yaml").read_text(encoding="utf-8"))
    for group in cluster["spec"]["workerGroupSpecs"]:
        hook = group["template"]["spec"]["containers"][0].get("lifecycle")
        called += [hook["preStop"]["exec"]["command"][3]] if hook else []
    assert called == ["spot", "leave", "leave"]


@pytest.mark.parametrize("arguments", [[], ["leave"], ["leave", "soon"], ["spot", "5"]])
def test_other_arguments_are_bad_input(arguments: list[str]) -> None:
    with pytest.raises(InputError, match=r"takes `spot` or `leave SECONDS`"):
        notice.main(arguments)
