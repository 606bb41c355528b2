"""Reads the file in which W&B keeps an offline run: LevelDB's log format around protocol buffers.

A file starts with a header of 7 bytes.  Blocks of 32 KiB hold chunks: crc32 (4 bytes), length (2), type (1), data.
A record is one chunk of type 1, or chunks of types 2, 3, …, 4.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_BLOCK = 32 * 1024
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass(frozen=True)
class Artifact:
    """What a log says of something that the run used or made."""

    name: str
    kind: str
    used: bool
    aliases: frozenset[str]
    files: dict[str, tuple[str, str, int]]
    """Path to URI, digest and size in bytes."""
    facts: dict[str, Any]


@dataclass
class OfflineRun:
    """What one log says."""

    id: str = ""
    project: str = ""
    name: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    host: str | None = None
    commit: str = ""
    started: float = 0.0
    """In seconds of Unix time; ``wandb sync`` takes the logs of a run in this order."""
    exit_code: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)
    """Metric to the metric that it is drawn over."""
    artifacts: list[Artifact] = field(default_factory=list)


def read(path: Path) -> OfflineRun:
    run = OfflineRun()
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        match record.WhichOneof("record_type"):
            case "run":
                run.id, run.project, run.name = record.run.run_id, record.run.project, record.run.display_name
                run.group, run.job_type = record.run.run_group, record.run.job_type
                run.tags, run.host = list(record.run.tags), record.run.host
                run.commit = record.run.git.commit
                run.started = record.run.start_time.ToNanoseconds() / 1e9
                run.config |= {_key(u): json.loads(u.value_json) for u in record.run.config.update}
            case "config":
                run.config |= {_key(u): json.loads(u.value_json) for u in record.config.update}
            case "history":
                run.history.append({_key(i): json.loads(i.value_json) for i in record.history.item})
            case "summary":
                run.summary |= {_key(u): json.loads(u.value_json) for u in record.summary.update}
            case "metric":
                run.axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
            case "artifact":
                run.artifacts.append(_artifact(record.artifact))
            case "exit":
                run.exit_code = record.exit.exit_code
    return run


def read_all(root: Path, wandb_id: str) -> list[OfflineRun]:
    """All logs of a W&B run below ``root``, in the order in which they were begun."""
    logs = [read(path) for path in root.glob(f"wandb/*/run-{wandb_id}.wandb") if not path.parent.is_symlink()]
    return sorted(logs, key=lambda log: log.started)


def _artifact(record: Any) -> Artifact:
    assert record.digest
    return Artifact(
        record.name,
        record.type,
        record.use_after_commit,
        frozenset(record.aliases),
        {entry.path: (entry.ref, entry.digest, entry.size) for entry in record.manifest.contents},
        json.loads(record.metadata or "{}"),
    )


def _key(item: Any) -> str:
    return ".".join(item.nested_key) or item.key


def raw_records(path: Path) -> Iterator[bytes]:
    """The bytes of every record, put together where a block divides one."""
    return _records(path.read_bytes())


def _records(data: bytes) -> Iterator[bytes]:
    ident, magic, _ = struct.unpack_from("<4sHB", data)
    assert (ident, magic) == (b":W&B", 0xBEE1)
    at, parts = 7, b""
    while at + 7 <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < 7:
            at += left
            continue
        checksum, size, kind = struct.unpack_from("<IHB", data, at)
        chunk = data[at + 7 : at + 7 + size]
        assert zlib.crc32(bytes([kind]) + chunk) == checksum, f"damaged at byte {at}"
        parts = chunk if kind in (_WHOLE, _FIRST) else parts + chunk
        at += 7 + size
        if kind in (_WHOLE, _LAST):
            yield parts
