"""Where a dashboard is, and what is said of one that cannot be used."""

import json
import platform
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import ray
from ray_nodes import free_port

from cluster import dashboard
from cluster.dashboard import ADDRESSES, Dashboard, ServerError, find_url
from shards.errors import InputError, UnreachableError

Answers = dict[str, tuple[int, str]]
AUTHORIZATIONS: list[str | None] = []
"""What came with each request."""
GOOD = {"Ray": ray.__version__, "Python": platform.python_version()}


@pytest.fixture(autouse=True)
def no_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ADDRESSES:
        monkeypatch.delenv(name, raising=False)


@contextmanager
def server(answer: Callable[[str], tuple[int, str]]) -> Iterator[str]:
    """A web server that answers as it is told: for clusters of another version, of which there is none here."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            AUTHORIZATIONS.append(self.headers["Authorization"])
            status, text = answer(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *arguments: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def cluster(versions: dict[str, str]) -> Callable[[str], tuple[int, str]]:
    pages = {
        "/api/version": {"version": "4", "ray_version": versions["Ray"]},
        "/api/v0/cluster_metadata": {"data": {"pythonVersion": versions["Python"]}},
    }
    return lambda path: (200, json.dumps(pages[path]))


def test_what_was_asked_for_comes_before_the_config_and_that_before_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert find_url(None, None) is None
    monkeypatch.setenv("RAY_ADDRESS", "http://third:8265")
    assert find_url(None, None) == "http://third:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://second:8265")
    assert find_url(None, None) == "http://second:8265"
    assert find_url(None, "auto") == "http://second:8265"
    assert find_url(None, "https://first") == "https://first"
    assert find_url("http://asked:8265/", "https://first") == "http://asked:8265"
    assert find_url("asked:8265", "https://first") == "http://asked:8265"


def test_the_address_of_rays_other_client_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"ray://head:10001 is not an address of a dashboard; .*http://HEAD:8265"
    ):
        find_url("ray://head:10001", None)


@pytest.mark.parametrize("address", ["", "http://", "https:///path", ":8265"])
def test_an_address_without_a_machine_is_refused(address: str) -> None:
    with pytest.raises(
        InputError, match=r"names no machine; give the head's, as in --address http://HEAD:8265"
    ):
        find_url(address, None)


def test_a_password_for_the_head_does_not_take_the_tokens_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password canary\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    AUTHORIZATIONS.clear()
    with server(cluster(GOOD)) as url:
        Dashboard(url)
    assert AUTHORIZATIONS
    assert not any(sent is not None and sent.startswith("Basic") for sent in AUTHORIZATIONS)


@pytest.mark.parametrize("status", [404, 500])
def test_a_dashboard_that_does_not_tell_its_python_is_none(status: int) -> None:
    def answer(path: str) -> tuple[int, str]:
        return (status, "{}") if "metadata" in path else cluster(GOOD)(path)

    with (
        server(answer) as url,
        pytest.raises(InputError, match=rf"{url} is not the dashboard .*status {status}"),
    ):
        Dashboard(url)


@pytest.mark.parametrize(("status", "behind"), [(404, False), (500, True), (503, True)])
def test_trouble_behind_the_dashboard_is_told_apart(status: int, behind: bool) -> None:
    def answer(path: str) -> tuple[int, str]:
        return (status, "GCS is gone") if "/jobs/" in path else cluster(GOOD)(path)

    with server(answer) as url:
        board = Dashboard(url)
        with pytest.raises(RuntimeError, match=f"{url} answers with status {status}: GCS is gone") as raised:
            board.get_job_info("pack-1")
    assert isinstance(raised.value, ServerError) is behind


def test_the_environment_does_not_win_over_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{free_port()}")
    with server(cluster(GOOD)) as url:
        assert Dashboard(url).url == url


def test_nobody_answers() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(
        UnreachableError, match=rf"no Ray dashboard answers at {url} \(.*refused.*\); give the head's"
    ):
        Dashboard(url)


def test_a_port_that_accepts_and_says_nothing_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while self.request.recv(4096):
                pass

    monkeypatch.setattr(dashboard, "CONNECT_S", 0.5)
    with socketserver.TCPServer(("127.0.0.1", 0), Silent) as silent:
        threading.Thread(target=silent.serve_forever, daemon=True).start()
        began = time.monotonic()
        with pytest.raises(UnreachableError, match=r"no Ray dashboard answers at .* \(timed out\)"):
            Dashboard(f"http://127.0.0.1:{silent.server_address[1]}")
        assert time.monotonic() - began < 10
        silent.shutdown()


def test_another_of_rays_ports_is_no_dashboard() -> None:
    class Store(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(bytes(range(24)) + b"\n")

    with socketserver.TCPServer(("127.0.0.1", 0), Store) as store:
        threading.Thread(target=store.serve_forever, daemon=True).start()
        with pytest.raises(UnreachableError) as refused:
            Dashboard(f"http://127.0.0.1:{store.server_address[1]}")
        store.shutdown()
    assert str(refused.value).isprintable()
    assert "what listens there is no web server" in str(refused.value)


@pytest.mark.parametrize("name", ["Ray", "Python"])
def test_another_version_is_refused(name: str) -> None:
    with (
        server(cluster({**GOOD, name: "3.1.4"})) as url,
        pytest.raises(
            InputError, match=rf"has {name} 3\.1\.4, this machine {GOOD[name]}; start the cluster with"
        ),
    ):
        Dashboard(url)


def test_the_last_figure_of_a_version_may_differ() -> None:
    major, minor, _ = GOOD["Python"].split(".")
    with server(cluster({**GOOD, "Python": f"{major}.{minor}.99"})) as url:
        assert Dashboard(url).url == url


@pytest.mark.parametrize(
    ("status", "text"), [(404, "no"), (200, "<html>"), (200, "{}"), (500, "broken")], ids=str
)
def test_another_server_is_no_dashboard(status: int, text: str) -> None:
    with (
        server(lambda path: (status, text)) as url,
        pytest.raises(InputError, match=r"is not the dashboard of a Ray cluster"),
    ):
        Dashboard(url)
