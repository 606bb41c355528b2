"""An address at which no head is costs seconds, whoever asks: stages that join, and commands about jobs.

Ray itself would ask for minutes; each of these tests has 40 s.
"""

import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from ray_nodes import free_port

from bts_dist.config import ClusterConfig
from cluster import head_port
from cluster.dashboard import ADDRESSES, find_url
from cluster.head_port import check_head
from cluster.resources import ray_cluster
from shards.errors import InputError


@pytest.fixture(autouse=True)
def no_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ADDRESSES:
        monkeypatch.delenv(name, raising=False)


@contextmanager
def listener(answer: bytes) -> Iterator[str]:
    """Somebody who accepts connections, and says this to whatever is said."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(ConnectionError):  # who has heard enough hangs up
                while self.request.recv(4096):
                    self.request.sendall(answer)

    # Ray puts the node's own address in place of the loopback's.
    with socketserver.ThreadingTCPServer(("0.0.0.0", 0), Handler) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def join(address: str) -> None:
    with ray_cluster(ClusterConfig(address=address)):
        pass


def look_for_jobs(address: str) -> None:
    find_url(None, address)


pytestmark = pytest.mark.timeout(40)

both = pytest.mark.parametrize("ask", [join, look_for_jobs])


def refused(ask: Callable[[str], None], address: str, words: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        InputError, match=rf"no Ray cluster answers at .*{address} \(.*{words}.*\); .*`ray up`"
    ):
        ask(address)
    assert capfd.readouterr() == ("", ""), "nothing of Ray's C++"


@both
def test_a_closed_port(ask: Callable[[str], None], capfd: pytest.CaptureFixture[str]) -> None:
    refused(ask, f"127.0.0.1:{free_port()}", "refused", capfd)


@both
def test_a_name_that_nobody_has(ask: Callable[[str], None], capfd: pytest.CaptureFixture[str]) -> None:
    refused(ask, "nobody.invalid:6379", "", capfd)


@both
def test_a_port_that_accepts_and_says_nothing(
    ask: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(head_port, "CONNECT_S", 0.5)
    with listener(b"") as address:
        refused(ask, address, "no answer in|timed out", capfd)


@both
def test_a_port_of_another_server(ask: Callable[[str], None], capfd: pytest.CaptureFixture[str]) -> None:
    with listener(b"HTTP/1.1 400 Bad Request\r\n\r\n") as address:
        refused(ask, address, "what listens there is no head of Ray's", capfd)


@both
def test_what_is_no_address(ask: Callable[[str], None], capfd: pytest.CaptureFixture[str]) -> None:
    refused(ask, "head", "Invalid address format", capfd)


def test_the_clusters_variable_is_asked_for_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    with pytest.raises(InputError, match=r"cluster\.address=auto \(.*refused"):
        join("auto")


def test_an_address_of_rays_client_is_left_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    check_head("ray://nobody.invalid:10001")
    monkeypatch.setenv("RAY_ADDRESS", "ray://nobody.invalid:10001")
    check_head("auto")
