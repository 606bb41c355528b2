import hashlib
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shards.process import born
from shards.vouching import Vouching

DATA = b"a shard"
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "shard.tar").write_bytes(DATA)
    return tmp_path / "shard.tar"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were hashed."""
    digest, names = hashlib.file_digest, []

    def counted(file, kind):  # type: ignore[no-untyped-def]
        names.append(Path(file.name).name)
        return digest(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return names


def holds(vouching: Vouching, path: Path, sha256: str = SHA256) -> bool:
    with path.open("rb") as file:
        return vouching.holds(file, sha256)


def test_a_file_is_hashed_once(tmp_path: Path, path: Path, hashed: list[str]) -> None:
    vouching = Vouching(tmp_path / "notes")
    assert [holds(vouching, path) for _ in range(3)] == [True] * 3
    assert hashed == ["shard.tar"]


def test_threads_that_ask_at_once_hash_it_once(tmp_path: Path, path: Path, hashed: list[str]) -> None:
    vouching = Vouching(tmp_path / "notes")
    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(lambda _: holds(vouching, path), range(8)))
    assert hashed == ["shard.tar"]


def test_wrong_bytes_are_never_vouched_for(tmp_path: Path, path: Path, hashed: list[str]) -> None:
    vouching = Vouching(tmp_path / "notes")
    wrong = SHA256[:2] + "0" * 62
    assert [holds(vouching, path, wrong) for _ in range(2)] == [False, False]
    assert holds(vouching, path)
    assert not holds(vouching, path, wrong)
    assert len(hashed) == 4


def test_another_file_of_the_name_is_hashed_again(tmp_path: Path, path: Path, hashed: list[str]) -> None:
    vouching = Vouching(tmp_path / "notes")
    assert holds(vouching, path)
    with path.open("rb"):  # so that its inode is not used again
        (tmp_path / "new").write_bytes(b"changed")
        (tmp_path / "new").replace(path)
        assert not holds(vouching, path)
    assert len(hashed) == 2


def test_a_file_that_was_written_to_is_hashed_again(tmp_path: Path, path: Path, hashed: list[str]) -> None:
    vouching = Vouching(tmp_path / "notes")
    assert holds(vouching, path)
    with path.open("r+b") as file:
        file.write(b"A")
    assert not holds(vouching, path)
    assert len(hashed) == 2


def test_without_a_folder_everyone_hashes(path: Path, hashed: list[str]) -> None:
    assert holds(Vouching(None), path)
    assert holds(Vouching(None), path)
    assert len(hashed) == 2


def test_a_folder_that_cannot_be_made_costs_nothing_but_time(path: Path, hashed: list[str]) -> None:
    assert holds(Vouching(path / "notes"), path)
    assert not holds(Vouching(path / "notes"), path, "0" * 64)


VERIFIER = """
import sys
from pathlib import Path
from shards.vouching import Vouching
with open(sys.argv[2], "rb") as file:
    assert Vouching(Path(sys.argv[1])).holds(file, sys.argv[3])
    print("verified", flush=True)
    sys.stdin.read()
"""


def test_a_living_process_vouches_and_a_dead_one_does_not(
    tmp_path: Path, path: Path, hashed: list[str]
) -> None:
    vouching = Vouching(tmp_path / "notes")
    command = [sys.executable, "-c", VERIFIER, str(tmp_path / "notes"), str(path), SHA256]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "verified\n"
    assert holds(vouching, path)
    assert hashed == []
    other.send_signal(signal.SIGKILL)
    other.communicate()
    assert holds(vouching, path)
    assert hashed == ["shard.tar"]


def test_notes_that_a_kill_cut_short_are_no_notes(tmp_path: Path, path: Path, hashed: list[str]) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / f"verified-{SHA256[:2]}.json").write_text('{"' + SHA256)
    assert holds(Vouching(tmp_path / "notes"), path)
    assert holds(Vouching(tmp_path / "notes"), path)
    assert hashed == ["shard.tar"]


def test_the_dead_are_forgotten(tmp_path: Path, path: Path) -> None:
    notes = tmp_path / "notes" / f"verified-{SHA256[:2]}.json"
    notes.parent.mkdir()
    dead = SHA256[:2] + "1" * 62
    notes.write_text(json.dumps({dead: {"inode": [1, 2, 3, 4, 5], "pid": os.getpid(), "born": "1"}}))
    assert holds(Vouching(tmp_path / "notes"), path)
    assert set(json.loads(notes.read_text())) == {SHA256}


def test_a_process_is_known_by_its_start() -> None:
    assert born(os.getpid()) == born(os.getpid()) != ""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    assert born(ended.pid) == "", "only its remains are there"
    ended.wait()
    assert born(ended.pid) == ""
