"""A data set's shards as bytes to read from, each verified whole before anything in it is used.

A shard lies in the store's own folder, in the node's cache, or, where nothing may be kept on disk, in memory.
Either way it is opened by a background thread, once: ``announce`` starts that early.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BufferedReader
from mmap import ACCESS_READ, mmap
from typing import Protocol

from shards.cache import NodeCache, open_whole
from shards.config import StoreConfig
from shards.fetch import fetch
from shards.manifest import Manifest
from shards.store import LocalStore, ObjectStore
from shards.tar import check_contents
from shards.vouching import Vouching

Span = tuple[str, int, int]
"""A member's name, offset and size."""


class Shard(Protocol):
    """The verified bytes of one shard."""

    def read(self, start: int, size: int) -> bytes: ...


@dataclass(frozen=True)
class _OnDisk:
    """The open file stays good when another process evicts its name."""

    file: BufferedReader

    def read(self, start: int, size: int) -> bytes:
        return os.pread(self.file.fileno(), size, start)


@dataclass(frozen=True)
class _InMemory:
    data: bytes

    def read(self, start: int, size: int) -> bytes:
        return self.data[start : start + size]


class ShardFiles:
    """The shards of one data set, opened on demand; at most ``keep`` of them stay open.

    Threads may share it.  ``members`` tells what a shard must hold.
    """

    def __init__(
        self,
        store: ObjectStore,
        manifest: Manifest,
        config: StoreConfig,
        members: Callable[[str], Sequence[Span]],
        *,
        on_disk: bool = True,
        threads: int = 4,
        keep: int = 64,
    ) -> None:
        self._store = store
        self._config = config
        self._shards = {s.name: s for s in manifest.shards}
        self._members = members
        cache = NodeCache.of(config)
        self._cache = cache if on_disk and not isinstance(store, LocalStore) else None
        self._vouching = cache.vouching if on_disk else Vouching(None)
        self._keep = keep
        self._opened: OrderedDict[str, Future[Shard]] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="fetch")

    def shard(self, name: str) -> Shard:
        """The shard's bytes, verified by size, sha256 and members.

        Raises:
            InputError: it is missing, damaged or not what manifest and index say; it names the shard.
        """
        return self._future(name).result()

    def announce(self, names: Iterable[str]) -> None:
        """Begin to open shards that will be wanted soon.  A failure shows when they are."""
        for name in names:
            self._future(name)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._opened.clear()

    def _future(self, name: str) -> "Future[Shard]":
        with self._lock:
            future = self._opened.get(name)
            if future is None or (future.done() and future.exception() is not None):
                future = self._opened[name] = self._pool.submit(self._open, name)
            self._opened.move_to_end(name)
            while len(self._opened) > self._keep:
                self._opened.popitem(last=False)
            return future

    def _open(self, name: str) -> Shard:
        record = self._shards[name]

        def fetched() -> bytes:
            return fetch(self._store, name, sha256=record.sha256, size=record.bytes, config=self._config)

        if self._cache is not None:
            return self._checked(name, self._cache.open(record.sha256, fetched))
        if not isinstance(self._store, LocalStore):
            data = fetched()
            check_contents(data, name, self._members(name))
            return _InMemory(data)
        while (file := open_whole(self._store.root / name, record.sha256, self._vouching)) is None:
            fetched()  # raises what is wrong with the file, unless it was put right just now
        return self._checked(name, file)

    def _checked(self, name: str, file: BufferedReader) -> Shard:
        """The file as a shard, if its members are the expected ones."""
        if os.fstat(file.fileno()).st_size == 0:  # which cannot be mapped
            check_contents(b"", name, self._members(name))
        with mmap(file.fileno(), 0, access=ACCESS_READ) as view:  # only the headers are looked at
            check_contents(view, name, self._members(name))
        return _OnDisk(file)
