"""W&B's login, against a server on this machine that stands in for W&B's and gives the answers it is known to give."""

import base64
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.sdk.lib import wbauth

from bts_dist.wandb_login import Login, LoginError, check_login, last_step

KEY = "k" * 40
KNOWN = {"data": {"viewer": {"username": "marie"}}}
TOKEN = {"access_token": "access", "expires_in": 3600, "token_type": "bearer"}
HERE = "http://127.0.0.1"

Answers = dict[str, tuple[int, object]]


class StandIn:
    """Not W&B: answers by path, and remembers what it was asked."""

    def __init__(self, answers: Answers) -> None:
        self.asked: list[tuple[str, str | None, bytes]] = []
        self.tokens: list[str | None] = []
        """Those of a gateway before the server, of every request."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.asked.append((self.path, self.headers["Authorization"], body))
                outer.tokens.append(self.headers["X-Gateway-Token"])
                status, answer = answers[self.path]
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", str(answer))
                self.end_headers()
                self.wfile.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode())

            def do_GET(self) -> None:
                outer.asked.append((self.path, self.headers["Authorization"], b""))
                outer.tokens.append(self.headers["X-Gateway-Token"])
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"<html>please log in to this network</html>")

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"{HERE}:{self.server.server_port}"


@pytest.fixture
def serve() -> Iterator[Callable[[Answers], StandIn]]:
    started: list[StandIn] = []

    def start(answers: Answers) -> StandIn:
        server = StandIn(answers)
        started.append(server)
        threading.Thread(
            target=server.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return server

    yield start
    for server in started:
        server.server.shutdown()
        server.server.server_close()


@pytest.fixture(autouse=True)
def _nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials of the developer's own, and no proxy."""
    for name in (
        "WANDB_API_KEY",
        "WANDB_IDENTITY_TOKEN_FILE",
        "http_proxy",
        "HTTP_PROXY",
        "no_proxy",
        "NO_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", os.devnull)
    monkeypatch.setattr(wandb.setup().settings, "api_key", None)
    monkeypatch.setattr(wandb.setup().settings, "credentials_file", str(tmp_path / "credentials.json"))


def at(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(wandb.setup().settings, "base_url", address)


def basic(key: str) -> str:
    return f"Basic {base64.b64encode(f'api:{key}'.encode()).decode()}"


def refused(within_s: float = 4.0) -> str:
    began = time.monotonic()
    with pytest.raises(LoginError) as raised:
        check_login(within_s)
    assert time.monotonic() - began < 5
    text = str(raised.value)
    assert "; " in text
    assert KEY not in text
    return text


def test_the_environments_key_comes_before_netrcs_and_that_before_the_settings(
    monkeypatch: pytest.MonkeyPatch, serve: Callable[[Answers], StandIn], tmp_path: Path
) -> None:
    server = serve({"/graphql": (200, KNOWN)})
    at(monkeypatch, server.address)
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine {server.address.removeprefix('http://')} login user password {'n' * 40}\n")
    monkeypatch.setattr(wandb.setup().settings, "api_key", "s" * 40)
    assert check_login() == Login(server.address, "marie")
    monkeypatch.setenv("NETRC", str(netrc))
    check_login()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    check_login()
    assert [key for _, key, _ in server.asked] == [basic("s" * 40), basic("n" * 40), basic(KEY)]


@pytest.mark.parametrize(
    ("status", "answer", "found"),
    [
        (401, {}, "does not know the key (HTTP 401); run `wandb login --host {} --relogin`"),
        (403, {}, "does not know the key (HTTP 403)"),
        (200, {"data": {"viewer": None}}, "does not know the key"),
        (500, {}, "does not answer (HTTP 500 Internal Server Error); see that"),
        (200, {"something": "else"}, "answers, and not as W&B does; mend WANDB_BASE_URL"),
        (200, b"<html>", "answers, and not as W&B does"),
        (200, [], "answers, and not as W&B does"),
        (200, {"data": {"viewer": "marie"}}, "answers, and not as W&B does"),
    ],
)
def test_what_the_server_says_against_it(
    monkeypatch: pytest.MonkeyPatch,
    serve: Callable[[Answers], StandIn],
    status: int,
    answer: object,
    found: str,
) -> None:
    server = serve({"/graphql": (status, answer)})
    at(monkeypatch, server.address)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert found.format(server.address) in refused()


@pytest.mark.parametrize(
    ("bucket", "step"),
    [
        (None, 0),
        ({"historyTail": "[]"}, 0),
        ({"historyTail": json.dumps([json.dumps({"_step": 7}), json.dumps({"_step": 9, "loss": 1})])}, 9),
    ],
)
def test_how_far_a_run_has_come(
    monkeypatch: pytest.MonkeyPatch, serve: Callable[[Answers], StandIn], bucket: object, step: int
) -> None:
    server = serve({"/graphql": (200, {"data": {"model": {"bucket": bucket}}})})
    at(monkeypatch, server.address)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert last_step("", "bts-dist", "id") == step
    variables = json.loads(server.asked[0][2])["variables"]
    assert variables == {"entity": None, "project": "bts-dist", "name": "id"}


def test_key_and_headers_go_to_nobody_that_a_redirect_leads_to(
    monkeypatch: pytest.MonkeyPatch, serve: Callable[[Answers], StandIn]
) -> None:
    portal = serve({})
    server = serve({"/graphql": (302, portal.address)})
    at(monkeypatch, server.address)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(wandb.setup().settings, "x_extra_http_headers", {"X-Gateway-Token": "secret"})
    assert "answers, and not as W&B does" in refused()
    assert server.tokens == ["secret"]
    assert [key for _, key, _ in portal.asked] == portal.tokens == [None]


@pytest.mark.parametrize(
    ("status", "answer"), [(200, KNOWN), (200, {"data": {"viewer": None}}), (200, []), (401, {}), (500, {})]
)
def test_a_password_in_the_servers_address_is_neither_shown_nor_in_the_way(
    monkeypatch: pytest.MonkeyPatch, serve: Callable[[Answers], StandIn], status: int, answer: object
) -> None:
    server = serve({"/graphql": (status, answer)})
    at(monkeypatch, server.address.replace("://", "://user:secret@"))
    assert f"not logged in to {server.address}; run `wandb login --host {server.address}`" in refused()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    if answer == KNOWN:
        assert check_login() == Login(server.address, "marie")
    else:
        said = refused()
        assert said.startswith(f"{server.address} ")
        assert "secret" not in said
    assert server.asked


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"WANDB_BASE_URL": "user:secret@wandb.hospital.org"}, "base_url"),
        ({"WANDB_BASE_URL": "https://wandb.ai/secret"}, "base_url"),
        ({"WANDB_INIT_TIMEOUT": "secret"}, "init_timeout"),
    ],
)
def test_a_setting_that_is_not_valid_is_named_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], name: str
) -> None:
    for variable, value in settings.items():
        monkeypatch.setenv(variable, value)
    wandb.teardown()  # it reads the environment when it is next asked
    try:
        said = refused()
    finally:
        monkeypatch.undo()
        wandb.teardown()
    assert said.startswith(
        f"W&B's setting {name} is not valid; mend WANDB_{name.upper()}, or {name} in W&B's"
    )
    assert ("an address such as https://wandb.example.org" in said) == (name == "base_url")
    assert "secret" not in said
    assert "pydantic" not in said


def test_another_wandb_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def authenticate_session(host: str) -> None: ...

    monkeypatch.setattr(wbauth, "authenticate_session", authenticate_session)
    assert f"wandb {wandb.__version__} is not known here (" in refused()
    assert "; install wandb 0.31" in refused()
    monkeypatch.delattr(wbauth, "authenticate_session")
    assert "; install wandb 0.31" in refused()


def test_a_server_that_is_silent_is_not_there_or_has_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        at(monkeypatch, f"{HERE}:{listening.getsockname()[1]}")
        assert "does not answer (nothing within 0.2 s); see that this machine may reach it" in refused(0.2)
        assert "nothing within 4 s" in refused()
    assert "does not answer (Connection refused)" in refused()
    at(monkeypatch, "http://nothing.invalid")
    assert "http://nothing.invalid does not answer (" in refused()


def test_behind_a_proxy(monkeypatch: pytest.MonkeyPatch, serve: Callable[[Answers], StandIn]) -> None:
    """The stand-in is the proxy here: it is asked for the server's whole address."""
    asked = "http://wandb.hospital.invalid/graphql"
    proxy = serve({asked: (200, KNOWN)})
    at(monkeypatch, "http://wandb.hospital.invalid")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    address = proxy.address.removeprefix("http://")
    monkeypatch.setenv("http_proxy", f"http://name:{KEY}@{address}")
    assert check_login().user == "marie"
    assert [path for path, _, _ in proxy.asked] == [asked]
    closed = serve({asked: (407, {})})
    address = closed.address.removeprefix("http://")
    # W&B's own setting comes before the environment's.
    monkeypatch.setattr(wandb.setup().settings, "http_proxy", f"http://name:{KEY}@{address}")
    assert (
        f"does not answer through the proxy {address} (HTTP 407 Proxy Authentication Required)" in refused()
    )


def test_credentials_that_cannot_be_used_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    at(monkeypatch, f"{HERE}:9")
    assert f"not logged in to {HERE}:9; run `wandb login --host {HERE}:9`, or set WANDB_API_KEY" in refused()
    monkeypatch.setenv("WANDB_API_KEY", "short")
    assert "WANDB_API_KEY invalid: API key must have 40+ characters, has 5; mend that variable" in refused()
    monkeypatch.setenv("WANDB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    assert "Both WANDB_API_KEY and WANDB_IDENTITY_TOKEN_FILE are set" in refused()
    monkeypatch.delenv("WANDB_API_KEY")
    assert f"the identity token in {tmp_path}/token cannot be read (No such file or directory)" in refused()


def test_an_identity_token_stands_for_an_access_token(
    monkeypatch: pytest.MonkeyPatch, serve: Callable[[Answers], StandIn], tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("a.b.c\n")
    monkeypatch.setenv("WANDB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    server = serve({"/oidc/token": (200, TOKEN), "/graphql": (200, KNOWN)})
    at(monkeypatch, server.address)
    assert check_login().user == "marie"
    (_, no_key, form), (_, key, _) = server.asked
    assert (no_key, key) == (None, "Bearer access")
    assert form == b"grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion=a.b.c"
    old = serve({"/oidc/token": (401, {"error": "expired"}), "/graphql": (200, KNOWN)})
    at(monkeypatch, old.address)
    assert f"does not take the identity token in {tmp_path}/token (HTTP 401); renew it" in refused()

    def keep(until: datetime) -> None:
        """As W&B keeps it: in UTC, without saying so."""
        kept: dict[str, Any] = {"access_token": "kept", "expires_at": f"{until:%Y-%m-%d %H:%M:%S}"}
        (tmp_path / "credentials.json").write_text(json.dumps({"credentials": {old.address: kept}}))

    now = datetime.now(UTC)
    keep(now + timedelta(minutes=5))
    assert check_login().user == "marie"
    assert old.asked[-1][1] == "Bearer kept"
    keep(now - timedelta(minutes=5))
    assert "renew it" in refused()
