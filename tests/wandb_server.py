"""A server that stands in for W&B's where rows are uploaded; it is not W&B's, and knows one run.

It answers what wandb 0.31 asks on `wandb sync`, and keeps rows as W&B does: at the offset that the client names.  Of
artifacts it keeps the names.
"""

import gzip
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = {"id": "e", "name": "e"}
LINEAGE = """
from bts_dist.wandb_artifacts import Description, FileReference
from bts_dist.wandb_record import WandbRecord

class Known:
    def __init__(self, kind, name):
        self.kind, self.name = kind, name

    def describe(self):
        files = [FileReference("f", "s3://bucket/f", 3, "0" * 64)]
        return Description(self.name, self.kind, files, {})

record = WandbRecord(run, 0)
record.lineage(Known("dataset", "data-d"), {"best": Known("model", "model-m")})
"""
"""For a script with a W&B run ``run``: tells what it was trained on and what came of it, as a training does."""


@dataclass
class RunServer:
    address: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    artifacts: set[str] = field(default_factory=set)
    """Names of those whose every file it has been told."""
    used: set[str] = field(default_factory=set)
    """Names of those that the run used."""
    cut: bool = False
    """Whether it takes no rows and no artifacts, as when the connection breaks once a run has begun."""
    refusal: int = 0
    """The HTTP status with which it refuses rows; 0 where it takes them."""
    open: threading.Event = field(default_factory=threading.Event)
    """Until it is set, runs can be asked for and not begun."""
    uploads: int = 0
    """How often a client began to send rows."""
    delay_s: float = 0.0
    """How long every answer takes."""
    received: list[bytes] = field(default_factory=list)
    """All that came of every request, but for the credentials: its line, its headers and its body."""

    @property
    def steps(self) -> list[int]:
        return [row["_step"] for row in self.history]

    def query(self, question: dict[str, Any]) -> dict[str, Any]:
        variables = question.get("variables") or {}
        bucket = {"id": "b", "name": variables.get("name"), "displayName": "run", "historyLineCount": 0}
        project = {"id": "p", "name": "p", "entity": ENTITY}
        if "upsertBucket" in question["query"]:
            self.uploads += 1
            self.open.wait(60)
            return {
                "upsertBucket": {"bucket": {**bucket, "config": "{}", "project": project}, "inserted": True}
            }
        if "createRunFiles" in question["query"]:
            files = [{"name": name, "uploadUrl": f"{self.address}/put"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if "historyTail" in question["query"]:
            tail = json.dumps([json.dumps(row) for row in self.history[-1:]])
            counts = {"historyLineCount": len(self.history), "eventsLineCount": 0, "logLineCount": 0}
            texts = {"summaryMetrics": "{}", "config": "{}", "eventsTail": "[]", "wandbConfig": '{"t": 1}'}
            known = {**bucket, **counts, **texts, "tags": [], "historyTail": tail}
            return {"model": {**project, "bucket": known if self.history else None}}
        artifact = self._artifact(question["query"], variables)
        if artifact:
            return artifact
        if "viewer" in question["query"]:
            return {"viewer": {"id": "v", "username": "marie", "entity": "e", "flags": "{}"}}
        return {}

    def _artifact(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Answers on the way of an artifact, whose id is its name: it is made, its files are listed, and it counts."""
        sent = variables.get("input", variables)
        if "createArtifact(" in query:
            made = {
                "id": sent["artifactCollectionName"],
                "state": "PENDING",
                "artifactSequence": {"latestArtifact": None},
            }
            return {"createArtifact": {"artifact": made}}
        if "createArtifactManifest(" in query:
            file = {
                "id": "f",
                "name": "m",
                "displayName": "m",
                "uploadUrl": f"{self.address}/put",
                "uploadHeaders": [],
            }
            return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}
        if "commitArtifact(" in query:
            self.artifacts.add(sent["artifactID"])
            return {"commitArtifact": {"artifact": {"id": sent["artifactID"], "digest": "d"}}}
        if "useArtifact(" in query:
            self.used.add(sent["artifactID"])
            return {"useArtifact": {"artifact": {"id": sent["artifactID"], "digest": "d"}}}
        return {}

    def stream(self, sent: dict[str, Any]) -> None:
        rows = sent.get("files", {}).get("wandb-history.jsonl")
        if rows:
            self.history[rows["offset"] :] = [json.loads(row) for row in rows["content"]]


@contextmanager
def run_server() -> Iterator[RunServer]:
    found = RunServer()
    found.open.set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            headers = [f"{name}: {value}" for name, value in self.headers.items() if name != "Authorization"]
            found.received.append("\n".join([self.requestline, *headers, ""]).encode() + body)
            time.sleep(found.delay_s)
            answer: dict[str, Any] = {}
            lost = found.cut and (self.path != "/graphql" or b"Artifact" in body)
            if lost:
                pass
            elif self.path == "/graphql":
                answer = {"data": found.query(json.loads(body))}
            elif self.path.endswith("/file_stream") and not found.refusal:
                found.stream(json.loads(body))
            refused = found.refusal if self.path.endswith("/file_stream") else 0
            data = json.dumps(answer).encode()
            self.send_response(503 if lost else refused or 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_PUT(self) -> None:
            self.do_POST()

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, *_: object) -> None: ...

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None: ...  # clients leave without a word

    with Quiet(("127.0.0.1", 0), Handler) as server:
        found.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield found
        finally:
            found.open.set()
            server.shutdown()
            thread.join()
