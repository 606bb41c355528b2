"""Processes of a node that vouch for files to each other, so that each file is hashed once a node.

A process that has hashed a file and keeps it open is as sure of it as it can be.  Another one that opens the same
file (the same inode, not written to since) while the first still lives may rely on it.  When it has died, nobody
vouches any more.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from shards.process import born

Notes = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Vouching:
    """Notes of what was verified, in ``folder``; without one, every process hashes for itself."""

    folder: Path | None

    def holds(self, file: BufferedReader, sha256: str) -> bool:
        """Whether the file's bytes have this sha256 (hex).  Of several processes that ask at once, one hashes."""
        with self._notes(sha256) as notes:
            status = os.fstat(file.fileno())
            inode = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
            note = notes.get(sha256)
            if note is not None and note["inode"] == inode and born(note["pid"]) == note["born"]:
                return True
            # Through a small buffer: to fault in fresh memory for a whole shard takes longer than to hash it.
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                return False
            notes[sha256] = {"inode": inode, "pid": os.getpid(), "born": born(os.getpid())}
            return True

    @contextmanager
    def _notes(self, sha256: str) -> Iterator[Notes]:
        """The notes on shards whose hash begins alike, held by one process or thread at a time."""
        path = None if self.folder is None else self.folder / f"verified-{sha256[:2]}.json"
        opened = None
        if path is not None:
            with suppress(OSError):  # a folder that cannot be written only costs the others' help
                path.parent.mkdir(parents=True, exist_ok=True)
                opened = path.open("a+")
        if opened is None:
            yield {}
            return
        with opened as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            notes = _parsed(file.read())
            before = dict(notes)
            yield notes
            if notes != before:
                alive = {key: note for key, note in notes.items() if born(note["pid"]) == note["born"]}
                file.truncate(0)
                file.write(json.dumps(alive))


def _parsed(text: str) -> Notes:
    """The notes; none where a kill cut them short."""
    try:
        notes: Notes = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return notes
