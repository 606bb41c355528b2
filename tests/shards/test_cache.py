import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import pytest

from shards.cache import NodeCache, cache_folder
from shards.config import StoreConfig
from shards.errors import InputError

KIB = 1024


def shard(number: int, size: int = KIB) -> tuple[str, bytes]:
    """A shard's sha256 and bytes."""
    data = bytes([number]) * size
    return hashlib.sha256(data).hexdigest(), data


def never() -> bytes:
    raise AssertionError("it is there and must not be fetched")


def whole(file: BinaryIO) -> bytes:
    return os.pread(file.fileno(), 100 * KIB, 0)


def kept(cache: NodeCache) -> set[str]:
    return {path.stem for path in cache.folder.glob("*.tar")}


@pytest.fixture
def cache(tmp_path: Path) -> NodeCache:
    return NodeCache(tmp_path / "cache", 3 * KIB)


def test_a_shard_is_fetched_once(cache: NodeCache) -> None:
    sha256, data = shard(1)
    for fetch in (lambda: data, never):
        file = cache.open(sha256, fetch)
        assert os.pread(file.fileno(), 2 * KIB, 0) == data
    assert kept(cache) == {sha256}


@pytest.mark.parametrize("harm", [lambda data: b"", lambda data: data[:-1], lambda data: b"x" + data[1:]])
def test_a_harmed_file_is_fetched_again(cache: NodeCache, harm: Callable[[bytes], bytes]) -> None:
    sha256, data = shard(1)
    cache.open(sha256, lambda: data)
    (cache.folder / f"{sha256}.tar").write_bytes(harm(data))
    assert whole(cache.open(sha256, lambda: data)) == data
    assert whole(cache.open(sha256, never)) == data


def test_what_was_used_longest_ago_goes_first(cache: NodeCache) -> None:
    shards = [shard(number) for number in range(5)]
    for age, (sha256, data) in enumerate(shards[:3]):
        cache.open(sha256, lambda data=data: data)
        os.utime(cache.folder / f"{sha256}.tar", (age, age))  # long ago
    cache.open(shards[0][0], never)  # used again: the second is now the oldest
    for sha256, data in shards[3:]:
        cache.open(sha256, lambda data=data: data)
    assert kept(cache) == {shards[0][0], shards[3][0], shards[4][0]}


def test_a_shard_larger_than_the_limit_is_still_served(cache: NodeCache) -> None:
    small = shard(1)
    cache.open(small[0], lambda: small[1])
    sha256, data = shard(2, 5 * KIB)
    assert whole(cache.open(sha256, lambda: data)) == data
    assert kept(cache) == {sha256}


def test_an_evicted_file_stays_good_for_who_has_it_open(cache: NodeCache) -> None:
    (first, data), *others = [shard(number) for number in range(4)]
    file = cache.open(first, lambda: data)
    for sha256, other in others:
        cache.open(sha256, lambda other=other: other)
    assert first not in kept(cache)
    assert os.pread(file.fileno(), KIB, 0) == data


def test_threads_that_want_one_shard_fetch_it_once(cache: NodeCache) -> None:
    sha256, data = shard(1)
    fetched = threading.Semaphore(1)

    def slowly() -> bytes:
        assert fetched.acquire(blocking=False)
        time.sleep(0.05)
        return data

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: whole(cache.open(sha256, slowly)), range(8)))
    assert found == [data] * 8


def test_a_failed_fetch_leaves_the_way_free(cache: NodeCache) -> None:
    sha256, data = shard(1)

    def failing() -> bytes:
        raise InputError("the server is on fire")

    with pytest.raises(InputError, match="on fire"):
        cache.open(sha256, failing)
    assert whole(cache.open(sha256, lambda: data)) == data


def test_what_another_writer_has_begun_stays_and_what_a_dead_one_left_goes(cache: NodeCache) -> None:
    (first, _), (second, data) = shard(1), shard(2)
    assert first[:2] != second[:2], "they share a lock"
    part = cache.folder / f"{first}.part"

    def fetch_while_another_evicts() -> bytes:
        # The lock of the first shard is held here, as it is while the file is written.
        part.write_bytes(b"x" * cache.limit)
        assert whole(cache.open(second, lambda: data)) == data
        assert part.exists()
        raise InputError("killed")

    with pytest.raises(InputError, match="killed"):
        cache.open(first, fetch_while_another_evicts)
    third, more = shard(3)
    assert whole(cache.open(third, lambda: more)) == more
    assert not part.exists()


WORKER = """
import hashlib, os, sys
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO
from shards.cache import NodeCache
cache = NodeCache(Path(sys.argv[1]), int(sys.argv[2]))
print("ready", flush=True)
round = 0
while True:
    for number in range(8):
        data = bytes([number]) * 50_000
        file = cache.open(hashlib.sha256(data).hexdigest(), lambda: data)
        assert os.pread(file.fileno(), 60_000, 0) == data
    round += 1
    print(round, flush=True)
"""


def test_processes_share_it_though_some_are_killed(tmp_path: Path) -> None:
    """Three processes fetch and evict for dear life; each that is killed leaves nothing in the others' way."""
    limit = 200_000
    command = [sys.executable, "-c", WORKER, str(tmp_path), str(limit)]
    victims = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    survivor = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert survivor.stdout is not None
    try:
        for victim in victims:
            assert victim.stdout is not None
            while victim.stdout.readline() not in ("3\n", ""):
                pass
            victim.send_signal(signal.SIGKILL)
        while (line := survivor.stdout.readline()) not in ("20\n", ""):
            pass
        assert line == "20\n"
    finally:
        for process in (*victims, survivor):
            process.kill()
            process.wait()
    cache = NodeCache(tmp_path, limit)
    for number in range(8):
        data = bytes([number]) * 50_000
        assert whole(cache.open(hashlib.sha256(data).hexdigest(), lambda data=data: data)) == data
    assert sum(path.stat().st_size for path in tmp_path.glob("*.*")) <= limit


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = NodeCache(tmp_path / "file" / "cache", KIB)
    with pytest.raises(InputError, match=r"file/cache: cannot keep shards here .*set store\.cache_dir"):
        cache.open(shard(1)[0], never)


def test_a_full_disk_is_named(cache: NodeCache) -> None:
    sha256, _ = shard(1)
    cache.folder.mkdir()
    (cache.folder / f"{sha256}.part").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"no space left on device.*store\.cache_gib"):
        cache.open(sha256, lambda: b"x" * KIB)


def test_room_is_what_the_disk_has(cache: NodeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.has_room()
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**30 - 1))
    assert not cache.has_room()


def test_the_cache_folder_follows_the_config_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder(StoreConfig()) == Path("/home/someone/.cache/bts-dist")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert cache_folder(StoreConfig()) == Path("/var/cache/bts-dist")
    assert cache_folder(StoreConfig(cache_dir="~/disk")) == Path("/home/someone/disk")
