"""A command run to its end, with the most memory that it and its children held together meanwhile."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

_INTERVAL_S = 0.1


def run_watched(command: Sequence[str | Path]) -> tuple[str, int]:
    """The command's standard output, and bytes: memory that processes share is shared out among them (PSS).

    Raises ``CalledProcessError`` when it fails; its standard error is in it.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    most = 0
    while True:
        try:
            output, errors = process.communicate(timeout=_INTERVAL_S)
            break
        except subprocess.TimeoutExpired:
            most = max(most, _held(process.pid))
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output, errors)
    return output, most


def _held(pid: int) -> int:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = [child for thread in threads for child in (thread / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):  # ended since
        return 0
    own = next((int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:")), 0)
    return own + sum(_held(int(child)) for child in children)
