"""The git commit of the code that runs."""

import os
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path

VARIABLE = "BTS_COMMIT"
"""Says it where the code lies without its repository, as in a folder that Ray sent to its workers."""
FILE = "built-from.txt"
"""Says it in a wheel, which was built with it."""


@cache
def code_commit() -> str | None:
    """The commit, with ``-dirty`` where tracked files differ from it; None where nobody knows."""
    package = Path(__file__).parent
    return os.environ.get(VARIABLE) or _described(package.parent) or _built_from(package)


def _described(root: Path) -> str | None:
    # Installed below some other project's repository, that one's commit would say nothing.
    if not (root / ".git").exists():
        return None
    describe = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(describe, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # no git, or a file system that hangs
        return None
    return done.stdout.strip() or None


def _built_from(package: Path) -> str | None:
    with suppress(FileNotFoundError):
        return (package / FILE).read_text(encoding="utf-8").strip()
    return None
