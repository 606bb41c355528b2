import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shards import memory
from shards.memory import is_shared, private_memory, sample_bytes, shared_memory, shared_room


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder of its own on the memory file system, so that no test meets a running training."""
    folder = Path("/dev/shm") / f"bts-test-{os.getpid()}"
    folder.mkdir()
    monkeypatch.setattr(memory, "SHARED", folder)
    yield
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def files() -> list[str]:
    return [path.name for path in memory.SHARED.iterdir()]


def test_what_one_puts_in_the_other_sees() -> None:
    ours, theirs = (shared_memory("a", 5, 4, 3) for _ in range(2))
    assert (ours.images.shape, ours.masks.shape, ours.held.shape) == ((5, 4, 3, 3), (5, 4, 3), (5,))
    assert (ours.images.dtype, ours.held.dtype) == (np.uint8, bool)
    assert not theirs.held.any()
    ours.images[2], ours.masks[2], ours.held[2] = 7, 1, True
    assert theirs.held.tolist() == [False, False, True, False, False]
    assert (theirs.images[2] == 7).all()
    assert (theirs.masks[2] == 1).all()
    assert theirs.images.sum() == 7 * 36
    assert theirs.masks.sum() == 12


def test_names_are_apart() -> None:
    ours, theirs = shared_memory("a", 1, 2, 2), shared_memory("b", 1, 2, 2)
    ours.held[0] = True
    assert not theirs.held[0]


def test_the_last_one_out_frees_it() -> None:
    ours, theirs = (shared_memory("a", 1, 2, 2) for _ in range(2))
    assert is_shared("a")
    ours.close()
    assert is_shared("a")
    theirs.close()
    theirs.close()
    assert files() == []
    assert len(ours.images) == len(theirs.held) == 0


def samples(num: int, height: int, width: int, value: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((num, height, width, 3), value, np.uint8), np.full((num, height, width), value, np.uint8)


def test_what_is_put_is_held_by_all() -> None:
    ours, theirs = (shared_memory("a", 5, 4, 3) for _ in range(2))
    ours.put(np.array([3, 1]), *samples(2, 4, 3, 8))
    for kept in (ours, theirs):
        assert kept.held.tolist() == [False, True, False, True, False]
        assert kept.images.sum() == 2 * 36 * 8
        assert (kept.images[[1, 3]] == 8).all()
        assert (kept.masks[[1, 3]] == 8).all()
        assert kept.masks.sum() == 2 * 12 * 8


def test_it_takes_no_more_room_than_what_is_put() -> None:
    before = shared_room()
    kept = shared_memory("a", 16, 256, 256)
    assert before - shared_room() <= 8192
    kept.put(np.array([0, 1]), *samples(2, 256, 256, 1))
    assert 2 * 4 * 65536 <= before - shared_room() <= 2 * 4 * 65536 + 16384
    kept.close()
    assert shared_room() == before


def test_what_has_no_room_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = shared_memory("a", 4, 4, 4)
    pwrite, written = os.pwrite, []

    def full(file: int, data: np.ndarray, at: int) -> int:
        if len(written) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(at)
        return pwrite(file, data, at)

    monkeypatch.setattr(os, "pwrite", full)
    kept.put(np.arange(4), *samples(4, 4, 4, 1))
    assert kept.held.tolist() == [True, False, False, False]
    kept.close()


def test_without_a_memory_file_system_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SHARED", Path("/nowhere"))
    with pytest.raises(FileNotFoundError):
        shared_memory("a", 1, 4, 4)
    assert shared_room() == 0


def test_none_at_all_is_possible() -> None:
    for kept in (shared_memory("a", 0, 4, 4), private_memory(0, 4, 4)):
        assert kept.images.shape == (0, 4, 4, 3)
        kept.close()


def test_private_memory_is_not_shared() -> None:
    kept = private_memory(2, 4, 4)
    assert not kept.shared
    assert not kept.held.any()
    kept.put(np.array([1]), *samples(1, 4, 4, 5))
    assert kept.held.tolist() == [False, True]
    assert (kept.images[1] == 5).all()
    kept.close()
    assert files() == []


HOLDER = """
import sys
from pathlib import Path
from shards import memory
memory.SHARED = Path(sys.argv[1])
kept = memory.shared_memory(sys.argv[2], 3, 4, 4)
kept.images[1], kept.held[1] = 9, True
print("ready", flush=True)
sys.stdin.read()
kept.close()
"""


def holder(name: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(memory.SHARED), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_processes_share_it_and_a_killed_one_does_not_free_it() -> None:
    other = holder("a")
    ours = shared_memory("a", 3, 4, 4)
    assert ours.held.tolist() == [False, True, False]
    assert (ours.images[1] == 9).all()
    kill(other)
    assert is_shared("a")
    assert (ours.images[1] == 9).all()
    ours.close()
    assert files() == []


def test_what_killed_processes_left_is_taken_over_or_removed() -> None:
    kill(holder("a"))
    ours = shared_memory("a", 3, 4, 4)
    assert ours.held.tolist() == [False, True, False]
    kill(holder("b"))
    assert len(files()) == 2
    alive = holder("c")
    assert sorted(files()) == [memory._path(name).name for name in ("a", "c")]
    alive.communicate("")
    assert files() == [memory._path("a").name]
    ours.close()


def test_a_killed_start_is_made_good() -> None:
    memory._path("a").write_bytes(b"half")
    ours = shared_memory("a", 3, 4, 4)
    assert not ours.held.any()
    assert memory._path("a").stat().st_size == sample_bytes(3, 4, 4)
    ours.close()


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    memory._path("a").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic links"):
        shared_memory("a", 3, 4, 4)
    assert (tmp_path / "target").stat().st_size == 0


def test_others_may_not_look() -> None:
    kept = shared_memory("a", 1, 2, 2)
    assert memory._path("a").stat().st_mode & 0o777 == 0o600
    kept.close()
