"""The token's file is its owner's alone from the moment it exists."""

import os
from pathlib import Path

import pytest

from cluster.auth_token import ensure_token, hide_token, token_file, use_token


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


@pytest.mark.parametrize(
    ("name", "value"),
    [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "own"), ("RAY_AUTH_TOKEN_PATH", "/own")],
)
def test_no_token_is_made_beside_the_users_own(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    ensure_token()
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
