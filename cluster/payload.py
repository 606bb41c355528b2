"""What travels with a job: the code of the three packages and the config, as one folder, and nothing else.

Data, runs and credentials stay where they are: every node reads them from the store, by means of its own.
"""

import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from bts_dist.compose import dump_yaml
from bts_dist.config import Config
from shards.errors import InputError

PACKAGES = ("shards", "bts_dist", "cluster")
KINDS = (".py", ".j2", ".css", ".js")
"""What the packages are made of.  Whatever else lies beside it, a secret or data, stays here, and so do dotfiles."""
CONFIG = "config.yaml"

MOST_BYTES = 64 * 2**20
"""Code is about one MiB; Ray would carry 512 MiB, to every node."""
_NAMED = 3
"""Largest files that are named when they are too large together."""


@dataclass(frozen=True)
class Payload:
    folder: Path
    num_files: int
    num_bytes: int


def make_payload(folder: Path, config: Config, packages: dict[str, Path] | None = None) -> Payload:
    """Fill an empty folder with the code as it is imported here, installed or not, and with ``config``.

    Raises:
        InputError: it is larger than ``MOST_BYTES``; nothing is copied.
    """
    files = {
        folder / name / path.relative_to(root): path
        for name, root in (packages or _packages()).items()
        for path in sorted(root.rglob("*"))
        if path.suffix in KINDS and path.is_file() and not _hidden(path.relative_to(root))
    }
    sizes = {path: path.stat().st_size for path in files.values()}
    total = sum(sizes.values())
    if total > MOST_BYTES:
        largest = sorted(sizes, key=lambda path: sizes[path], reverse=True)[:_NAMED]
        named = ", ".join(f"{path} ({sizes[path] / 2**20:.1f} MiB)" for path in largest)
        raise InputError(
            f"the code is {total / 2**20:.1f} MiB, and a job may carry {MOST_BYTES // 2**20} MiB; move away what is "
            f"not code: {named}"
        )
    for target, path in files.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    text = dump_yaml(config).encode()
    (folder / CONFIG).write_bytes(text)
    return Payload(folder, len(files) + 1, total + len(text))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _packages() -> dict[str, Path]:
    """Where the packages lie that this process imports."""
    found = {name: find_spec(name) for name in PACKAGES}
    return {name: Path(spec.origin).parent for name, spec in found.items() if spec and spec.origin}
