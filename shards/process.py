"""Telling whether a process of this machine still lives."""

from pathlib import Path


def born(pid: int) -> str:
    """When the process was started, by the kernel's clock; empty when there is none, or only its remains.

    With the number it names a process for good: a later one of the same number was started at another time.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
