"""Shards fetched from object storage, kept on a node for all its processes.

A shard is a file named by its sha256, so data sets share what they have in common and nothing is ever stale.
Its bytes are checked by who opens it; a file that a crash left half-written, or that the disk spoilt, is fetched
again.  The folder is bounded: what was used longest ago goes first.  Removing a file harms nobody who has it
open, since the system keeps its bytes until the last one closes it.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from shards.config import StoreConfig
from shards.errors import InputError
from shards.vouching import Vouching

_GIB = 1 << 30
_USED_TOGETHER_S = 60


def cache_folder(config: StoreConfig) -> Path:
    """Where this node keeps shards fetched from object storage."""
    if config.cache_dir is not None:
        return Path(config.cache_dir).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bts-dist"


@dataclass(frozen=True)
class NodeCache:
    """Verified shards in one folder, at most ``limit`` bytes of them; safe for threads and processes."""

    folder: Path
    limit: int

    @property
    def vouching(self) -> Vouching:
        return Vouching(self.folder / "locks")

    @classmethod
    def of(cls, config: StoreConfig) -> "NodeCache":
        return cls(cache_folder(config).absolute(), int(config.cache_gib * _GIB))

    def open(self, sha256: str, fetch: Callable[[], bytes]) -> BufferedReader:
        """A shard's file, open to read, whose sha256 has just been checked.

        ``fetch`` gets bytes that are verified already.  Of the processes of a node that want the same shard, one
        calls it and the others wait for the file.

        Raises:
            InputError: the folder cannot be written; and whatever ``fetch`` raises.
        """
        path = self.folder / f"{sha256}.tar"
        with self._lock(_lock_of(sha256)):
            _mark_used(path)
            found = open_whole(path, sha256, self.vouching)
            if found is not None:
                return found
            data = fetch()
            try:
                self._make_room(len(data))
                return _write(path, data)
            except OSError as error:
                raise self._refusal(error) from error

    def has_room(self) -> bool:
        """Whether the folder can be written, and its disk is not nearly full."""
        there = next(folder for folder in (self.folder, *self.folder.parents) if folder.exists())
        return os.access(there, os.W_OK) and shutil.disk_usage(there).free >= _GIB

    def _make_room(self, needed: int) -> None:
        """Remove the shards used longest ago until ``needed`` more bytes fit."""
        with self._lock("evict"):
            kept = sorted(self._kept(), key=lambda shard: shard[1].st_mtime_ns)
            surplus = sum(stat.st_size for _, stat in kept) + needed - self.limit
            for path, stat in kept:
                if surplus <= 0:
                    break
                if path.suffix == ".part" and self._is_held(_lock_of(path.stem)):
                    continue  # its writer is at work
                path.unlink(missing_ok=True)
                surplus -= stat.st_size

    def _kept(self) -> Iterator[tuple[Path, os.stat_result]]:
        """The folder's shards, and what is written of others, or was when a writer was killed."""
        for pattern in ("*.tar", "*.part"):
            for path in self.folder.glob(pattern):
                with suppress(FileNotFoundError):  # renamed or removed since
                    yield path, path.stat()

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """One process or thread at a time; the system frees it when its holder dies."""
        try:
            (self.folder / "locks").mkdir(parents=True, exist_ok=True)
            file = (self.folder / "locks" / name).open("wb")
        except OSError as error:
            raise self._refusal(error) from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _is_held(self, name: str) -> bool:
        """Whether anybody, this thread too, has the lock."""
        with (self.folder / "locks" / name).open("wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    def _refusal(self, error: OSError) -> InputError:
        return InputError(
            f"{self.folder}: cannot keep shards here ({(error.strerror or str(error)).lower()}); free some space "
            "or lower store.cache_gib, set store.cache_dir to another folder, or set data.cache=none"
        )


def _lock_of(sha256: str) -> str:
    """The lock that a shard is fetched and written under; some shards share one."""
    return f"shard-{sha256[:2]}"


def _mark_used(path: Path) -> None:
    """Set the time by which files are evicted, though not for each of several processes that open it together."""
    with suppress(FileNotFoundError):
        if time.time() - path.stat().st_mtime > _USED_TOGETHER_S:
            os.utime(path)


def open_whole(path: Path, sha256: str, vouching: Vouching) -> BufferedReader | None:
    """The file, if it is there and its bytes are the right ones."""
    try:
        file = path.open("rb")
    except OSError:  # whoever fetches it says what is wrong
        return None
    if vouching.holds(file, sha256):
        return file
    file.close()
    return None


def _write(path: Path, data: bytes) -> BufferedReader:
    """Give the bytes their name once all are there.  Whoever opens the file later checks them, so no fsync."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(data)
    opened = part.open("rb")
    part.replace(path)
    return opened
