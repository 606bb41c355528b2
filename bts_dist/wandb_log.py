"""How far W&B's own log of a run reaches: the ``.wandb`` file that it keeps beside whatever it uploads.

The file is in LevelDB's log format (doc/log_format.md of that project) around protocol buffers: 7 bytes of header,
then blocks of 32 KiB with chunks of crc32 (4 bytes), length (2), type (1) and data.  A record is one chunk of type 1,
or chunks of types 2, 3, …, 4.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

_HEADER = struct.pack("<4sHB", b":W&B", 0xBEE1, 0)
_BLOCK = 32 * 1024
_CHUNK = struct.Struct("<IHB")
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass(frozen=True)
class LogEnd:
    """Where a log ends."""

    step: int
    """Highest step of which it holds a row; 0 when it holds none."""
    size: int
    """Bytes up to the end of its last whole record."""
    begun: bool
    """Whether it says which run it is of; if not, it says nothing."""
    finished: bool
    """Whether its run was ended in good order, so that nothing follows."""
    first: int = 0
    """Lowest step of which it holds a row; 0 when it holds none."""
    entity: str = ""
    """Whose project it is; empty for the default of whoever uploads it."""
    project: str = ""
    started: float = 0.0
    """When its run was begun, in seconds of Unix time; 0 when it does not say."""


def read_end(data: bytes) -> LogEnd:
    """The end of the log in ``data``.  What a kill cut short is not read.

    Raises:
        ValueError: it is no such log.
    """
    from wandb.proto import wandb_internal_pb2

    if not data.startswith(_HEADER[: len(data)]):
        raise ValueError("does not begin as a W&B log of version 0 does")
    first, step, size, begun, finished = 0, 0, min(len(_HEADER), len(data)), False, False
    entity, project, started = "", "", 0.0
    for end, content in _records(data):
        record = wandb_internal_pb2.Record.FromString(content)
        size = end
        match record.WhichOneof("record_type"):
            case "history":
                first = first or record.history.step.num
                step = max(step, record.history.step.num)
            case "run":
                begun = True
                entity, project = record.run.entity or entity, record.run.project or project
                started = started or record.run.start_time.ToNanoseconds() / 1e9
            case "exit":
                finished = True
    return LogEnd(step, size, begun, finished, first, entity, project, started)


def rows_after(data: bytes, step: int) -> bytes:
    """The log ``data`` without its rows up to ``step``."""
    from wandb.proto import wandb_internal_pb2

    log = bytearray(_HEADER)
    for _, content in _records(data):
        record = wandb_internal_pb2.Record.FromString(content)
        if record.WhichOneof("record_type") != "history" or record.history.step.num > step:
            _append(log, content)
    return bytes(log)


def _append(log: bytearray, content: bytes) -> None:
    """Add a record, in as many chunks as the blocks make of it."""
    begun = False
    while content or not begun:
        left = _BLOCK - len(log) % _BLOCK
        if left < _CHUNK.size:
            log += bytes(left)
            continue
        part, content = content[: left - _CHUNK.size], content[left - _CHUNK.size :]
        kind = (_MIDDLE if content else _LAST) if begun else (_FIRST if content else _WHOLE)
        log += _CHUNK.pack(zlib.crc32(bytes([kind]) + part), len(part), kind) + part
        begun = True


def _records(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Each whole record and where it ends, up to the first chunk that is cut short or damaged."""
    at, parts = len(_HEADER), b""
    while at + _CHUNK.size <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _CHUNK.size:
            at += left
            continue
        checksum, length, kind = _CHUNK.unpack_from(data, at)
        at += _CHUNK.size
        chunk = data[at : at + length]
        if len(chunk) < length or zlib.crc32(bytes([kind]) + chunk) != checksum:
            return
        at += length
        parts = chunk if kind in (_WHOLE, _FIRST) else parts + chunk
        if kind in (_WHOLE, _LAST):
            yield at, parts
