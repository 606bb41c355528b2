"""Which code runs is known with its repository, without it, and not at all."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bts_dist import commit

ROOT = Path(__file__).parents[2]


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


def build(folder: Path, known: str) -> Path:
    """A wheel of the sources without their repository, unpacked as an installation has it."""
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "hatch_build.py"):
        shutil.copy(ROOT / name, source)
    for name in ("shards", "bts_dist", "cluster"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    words = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(words, cwd=source, env=os.environ | {commit.VARIABLE: known}, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


def test_a_wheel_knows_what_it_was_built_from(tmp_path: Path) -> None:
    installed = build(tmp_path, "0123abcd")
    code = "from bts_dist import commit; print(commit.__file__, commit.code_commit())"
    words = [sys.executable, "-P", "-c", code]
    environment = {"PYTHONPATH": str(installed)}
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f"{installed}/bts_dist/commit.py", "0123abcd"]


def test_a_wheel_of_who_knows_what_says_nothing(tmp_path: Path) -> None:
    installed = build(tmp_path, "")
    assert (installed / "bts_dist" / "commit.py").exists()
    assert commit._built_from(installed / "bts_dist") is None
