"""A proxy in front of an S3 server that spoils chosen requests, so that retries meet real broken connections.

Signatures stay valid, since the client signs the proxy's address and every header passes unchanged; a request
that loses one is signed again.
"""

import http.client
import os
import socket
import struct
import sys
import threading
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.session import Session


@dataclass(frozen=True)
class Answer:
    """What the proxy or the server says to one request."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def refusal(status: int, code: str, **headers: str) -> Answer:
    """An S3 error answer."""
    body = f"<Error><Code>{code}</Code><Message>on purpose</Message></Error>".encode()
    return Answer(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


@dataclass
class Fault:
    """Spoils the next ``times`` requests of a method, after letting ``skip`` of them pass."""

    method: str
    kind: Literal[
        "cut", "bad spot", "reset", "stall", "hang up", "damage", "damage answer", "strip", "answer"
    ]
    """``cut`` closes the connection ``after`` bytes of the answer's body, ``reset`` does so rudely; ``stall`` falls
    silent there; ``bad spot`` closes it before byte ``after`` of the object, wherever the answer begins;
    ``hang up`` lets the server do its work and closes without an answer; ``damage`` flips a bit of what is
    sent to the server, ``damage answer`` one of byte ``after`` of what it answers, and takes the answer's
    checksums away; ``strip`` takes ``header`` out of the request; ``answer`` replies in the server's place."""
    after: int = 0
    answer: Answer | None = None
    header: str = ""
    times: int = 1
    skip: int = 0


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: Message

    @property
    def range(self) -> str | None:
        return self.headers.get("Range")


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error here, and a traceback from this thread can upset pytest's own."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class FaultProxy:
    """Use with ``with``; ``requests`` lists what came in."""

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = _Server(("127.0.0.1", 0), handler)
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
        with self._lock:
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
        self.proxy.requests.append(Request(self.command, self.path, self.headers))
        fault = self.proxy.next_fault(self.command)
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if fault is None:
            self._reply(self._forward(sent))
            return
        match fault.kind:
            case "answer":
                self._reply(fault.answer or Answer(500))
            case "damage":
                self._reply(self._forward(_flipped(sent, fault.after)))
            case "damage answer":
                self._reply(_damaged(self._forward(sent), fault.after))
            case "strip":
                del self.headers[fault.header]
                self._sign(sent)
                self._reply(self._forward(sent))
            case "hang up":
                self._forward(sent)
            case "bad spot":
                answer = self._forward(sent)
                self._reply(answer, max(0, fault.after - _first_byte(answer)))
            case "cut" | "reset" | "stall":
                self._reply(self._forward(sent), fault.after)
                if fault.kind == "stall":
                    self.proxy.closing.wait()
                elif fault.kind == "reset":
                    self._reset()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815

    def _sign(self, sent: bytes) -> None:
        """Put a signature that fits the headers in the place of the client's."""
        region = self.headers["Authorization"].split("/")[2]  # of …Credential=key/date/region/s3/aws4_request
        request = AWSRequest(self.command, f"http://{self.headers['Host']}{self.path}", self.headers, sent)
        S3SigV4Auth(Session().get_credentials().get_frozen_credentials(), "s3", region).add_auth(request)
        self.headers = request.headers

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

    def _reply(self, answer: Answer, length: int | None = None) -> None:
        headers = {"Content-Length": str(len(answer.body)), "Connection": "close", **answer.headers}
        self.send_response_only(answer.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body[:length])

    def _reset(self) -> None:
        """Close without a farewell; what the client has not read yet is lost with it."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())


def _flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def _damaged(answer: Answer, place: int) -> Answer:
    kept = {n: v for n, v in answer.headers.items() if not n.lower().startswith("x-amz-checksum-")}
    return Answer(answer.status, _flipped(answer.body, place), kept)


def _first_byte(answer: Answer) -> int:
    """Where in the object the answer's body begins."""
    headers = {name.lower(): value for name, value in answer.headers.items()}
    return int(headers.get("content-range", "bytes 0-").removeprefix("bytes ").partition("-")[0])
