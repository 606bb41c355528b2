"""The token by which Ray's processes, and those who send them jobs, know each other.

It is Ray's own: in ``RAY_AUTH_TOKEN``, in the file that ``RAY_AUTH_TOKEN_PATH`` names, or in ``~/.ray/auth_token``.
"""

import os
import secrets
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from cluster import console
from shards.errors import InputError

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

    Raises:
        InputError: the user's own is to be in a file that has none.
    """
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if named and not (_is_off() or os.environ.get("RAY_AUTH_TOKEN") or _holds(Path(named))):
        raise InputError(
            f"RAY_AUTH_TOKEN_PATH={named}: there is no token to be read; name a file that has one, or unset it"
        )
    if _is_off() or _given() or token_file().is_file():
        return
    token_file().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Of several first commands one makes it, and none reads half of it; such a file is its owner's alone at once.
    with tempfile.NamedTemporaryFile("w", dir=token_file().parent) as whole:
        whole.write(secrets.token_hex(32))
        whole.flush()
        with suppress(FileExistsError):
            os.link(whole.name, token_file())


def hide_token() -> None:
    """Keep the token's file from others' eyes, whoever made it."""
    if not (token_file().is_file() and token_file().stat().st_mode & 0o077):
        return
    try:
        token_file().chmod(0o600)
    except OSError as error:
        console.out.print(
            f"  others may read {token_file()}, and its mode cannot be changed ({error.strerror}): "
            "who reads it can run code on clusters that ask for it",
            markup=False,
        )


def refusal(cluster: str) -> str:
    """What to say of a cluster that does not let this machine in, for its token or for want of one."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        place, has = "RAY_AUTH_TOKEN", True
    else:
        named = os.environ.get("RAY_AUTH_TOKEN_PATH")
        place, has = f"{named or '~/.ray/auth_token'} (mode 0600)", _holds(Path(named or token_file()))
    own = "which `ray get-auth-token` prints on its head"
    if has and os.environ.get(MODE) == "token":
        return f"{cluster} refuses this machine's token; put the cluster's own, {own}, into {place}"
    if has:
        return f"{cluster} asks for a token and {MODE}={os.environ.get(MODE, '')} keeps this machine's back; unset it"
    return (
        f"{cluster} asks for a token and this machine has none; put the cluster's, {own}, into {place}, "
        "or name a file in RAY_AUTH_TOKEN_PATH"
    )


def _holds(file: Path) -> bool:
    try:
        return bool(file.read_text().strip())
    except OSError:
        return False


def _is_off() -> bool:
    return os.environ.get(MODE, "token") != "token"


def _given() -> bool:
    return any(os.environ.get(name) for name in _ELSEWHERE)
