"""A proxy in front of an S3 server that spoils chosen requests, so that retries meet real broken connections.

Signatures stay valid, since the client signs the proxy's address and every header passes unchanged.
"""

import http.client
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    """What the proxy or the server says to one request."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def refusal(status: int, code: str) -> Answer:
    """An S3 error answer."""
    return Answer(status, f"<Error><Code>{code}</Code><Message>on purpose</Message></Error>".encode())


@dataclass
class Fault:
    """Spoils the next ``times`` requests of a method, after letting ``skip`` of them pass."""

    method: str
    kind: Literal["cut", "stall", "hang up", "damage", "answer"]
    """``cut`` closes the connection ``after`` bytes of the answer's body; ``stall`` falls silent there;
    ``hang up`` lets the server do its work and closes without an answer; ``damage`` flips a bit of what is
    sent to the server; ``answer`` replies in the server's place."""
    after: int = 0
    answer: Answer | None = None
    times: int = 1
    skip: int = 0


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None


class FaultProxy:
    """Use with ``with``; ``requests`` lists what came in."""

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.closing = threading.Event()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FaultProxy":
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def next_fault(self, method: str) -> Fault | None:
        for fault in self.faults:
            if fault.method == method and fault.skip > 0:
                fault.skip -= 1
            elif fault.method == method and fault.times > 0:
                fault.times -= 1
                return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def _serve(self) -> None:
        self.close_connection = True
        self.proxy.requests.append(Request(self.command, self.path, self.headers.get("Range")))
        fault = self.proxy.next_fault(self.command)
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if fault and fault.kind == "damage":
            sent = bytes([sent[0] ^ 1]) + sent[1:]
        answer = fault.answer if fault and fault.answer else self._forward(sent)
        if not fault or fault.kind in ("damage", "answer"):
            self._reply(answer, len(answer.body))
        elif fault.kind in ("cut", "stall"):
            self._reply(answer, fault.after)
            if fault.kind == "stall":
                self.proxy.closing.wait()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815

    def _forward(self, sent: bytes) -> Answer:
        connection = http.client.HTTPConnection(self.proxy.upstream, timeout=30)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
        connection.request(self.command, self.path, sent, headers)
        reply = connection.getresponse()
        body = reply.read()
        connection.close()
        ours = ("connection", "transfer-encoding")
        return Answer(
            reply.status,
            body,
            {name: value for name, value in reply.getheaders() if name.lower() not in ours},
        )

    def _reply(self, answer: Answer, length: int) -> None:
        headers = {"Content-Length": str(len(answer.body)), "Connection": "close", **answer.headers}
        self.send_response_only(answer.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body[:length])
