"""The token's file is its owner's alone from the moment it exists."""

import errno
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.auth_token import ensure_token, hide_token, refusal, token_file, use_token
from shards.errors import InputError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def mode() -> int:
    return token_file().stat().st_mode & 0o777


def test_a_token_is_made_once_for_its_owner_alone() -> None:
    before = os.umask(0)
    try:
        ensure_token()
    finally:
        os.umask(before)
    token = token_file().read_text()
    assert mode() == 0o600
    assert len(token) == 64
    ensure_token()
    assert token_file().read_text() == token


def test_a_file_that_others_can_read_is_hidden() -> None:
    hide_token()
    assert not token_file().exists()
    token_file().parent.mkdir()
    token_file().write_text("known")
    token_file().chmod(0o644)
    hide_token()
    assert mode() == 0o600


def test_a_file_that_is_hidden_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_token()
    changed = token_file().stat().st_ctime_ns
    hide_token()
    assert token_file().stat().st_ctime_ns == changed


def test_a_file_that_cannot_be_hidden_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, mode: int) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    token_file().parent.mkdir()
    token_file().write_text("known")
    token_file().chmod(0o644)
    # A mount that is read-only takes rights that tests need not have.
    monkeypatch.setattr(Path, "chmod", refuse)
    hide_token()
    (line,) = capsys.readouterr().out.splitlines()
    assert f"others may read {token_file()}, and its mode cannot be changed (Read-only file system)" in line


def test_of_several_first_commands_one_makes_the_token() -> None:
    together = threading.Barrier(8)

    def first() -> str:
        together.wait()
        ensure_token()
        return token_file().read_text()

    for _ in range(50):
        with ThreadPoolExecutor(8) as commands:
            read = [made.result() for made in [commands.submit(first) for _ in range(8)]]
        assert set(read) == {token_file().read_text()}
        assert len(read[0]) == 64
        assert mode() == 0o600
        assert [file.name for file in token_file().parent.iterdir()] == ["auth_token"]
        token_file().unlink()


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, r"asks for a token and this machine has none; .* into ~/\.ray/auth_token \(mode 0600\)"),
        ({"RAY_AUTH_TOKEN": "x", "RAY_AUTH_MODE": "token"}, r"refuses .*, into RAY_AUTH_TOKEN$"),
        (
            {"RAY_AUTH_TOKEN": "x", "RAY_AUTH_MODE": "disabled"},
            r"asks for a token and RAY_AUTH_MODE=disabled keeps .*; unset it$",
        ),
        ({"RAY_AUTH_TOKEN_PATH": "/none"}, r"asks .* has none; .* into /none \(mode 0600\)"),
    ],
)
def test_a_refusal_names_the_place_that_counts(
    variables: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    token_file().parent.mkdir()
    token_file().touch()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert re.match(f"the cluster at h:1 {words}", refusal("the cluster at h:1")), refusal(
        "the cluster at h:1"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "own"), ("RAY_AUTH_TOKEN_PATH", "own")],
)
def test_no_token_is_made_beside_the_users_own(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own").write_text("own")
    monkeypatch.setenv(name, value)
    ensure_token()
    assert not token_file().exists()


def test_a_file_of_the_users_without_a_token_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for file in (tmp_path / "none", tmp_path / "empty"):
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
        with pytest.raises(InputError, match=rf"RAY_AUTH_TOKEN_PATH={file}: there is no token to be read"):
            ensure_token()
        (tmp_path / "empty").touch()
    assert not token_file().exists()


def test_a_token_that_is_there_is_used_unless_that_is_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    use_token()
    assert "RAY_AUTH_MODE" not in os.environ
    ensure_token()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    use_token()
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    monkeypatch.delenv("RAY_AUTH_MODE")
    use_token()
    assert os.environ["RAY_AUTH_MODE"] == "token"
