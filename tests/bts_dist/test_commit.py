"""Which code runs is known with its repository, without it, and not at all."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bts_dist import commit


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(commit.VARIABLE, raising=False)
    commit.code_commit.cache_clear()
    yield
    commit.code_commit.cache_clear()


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_repository_says_its_commit_and_whether_files_differ(tmp_path: Path) -> None:
    git(tmp_path, "init")
    (tmp_path / "code.py").write_text("a = 1\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-m", "first")
    git(tmp_path, "tag", "-a", "v1", "-m", "a tag says less than a hash")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit._described(tmp_path) == head
    (tmp_path / "code.py").write_text("a = 2\n")
    assert commit._described(tmp_path) == f"{head}-dirty"


def test_a_folder_within_another_repository_has_no_commit(tmp_path: Path) -> None:
    git(tmp_path, "init")
    (tmp_path / "below").mkdir()
    assert commit._described(tmp_path / "below") is None


def test_without_its_repository_the_code_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(commit.VARIABLE, "0123abcd")
    assert commit.code_commit() == "0123abcd"
