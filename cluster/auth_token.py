"""The token by which Ray's processes, and those who send them jobs, know each other.

It is Ray's own: in ``RAY_AUTH_TOKEN``, in the file that ``RAY_AUTH_TOKEN_PATH`` names, or in ``~/.ray/auth_token``.
"""

import os
import secrets
import sys
from pathlib import Path

MODE = "RAY_AUTH_MODE"
_ELSEWHERE = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def token_file() -> Path:
    return Path.home() / ".ray" / "auth_token"


def use_token() -> None:
    """Have this process send the token, where there is one; a cluster that wants none ignores it."""
    if MODE in os.environ or not (_given() or token_file().is_file()):
        return
    os.environ[MODE] = "token"
    if "ray" in sys.modules:
        # Ray reads the variable once, when it is imported.
        from ray._raylet import Config  # type: ignore[attr-defined]

        Config.initialize("")


def ensure_token() -> None:
    """Make the token of clusters that this machine starts, where there is none.

    Ray would make the file itself, readable by all.
    """
    if os.environ.get(MODE, "token") != "token" or _given() or token_file().is_file():
        return
    token_file().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = os.open(token_file(), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(file, "w") as opened:
        opened.write(secrets.token_hex(32))


def hide_token() -> None:
    """Keep the token's file from others' eyes, whoever made it."""
    if token_file().is_file():
        token_file().chmod(0o600)


def _given() -> bool:
    return any(os.environ.get(name) for name in _ELSEWHERE)
