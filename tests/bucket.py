"""A folder as if it were object storage: what is no ``LocalStore`` is fetched from and uploaded to."""

from pathlib import Path
from typing import Any

from shards.store import LocalStore


class Bucket:
    """The store of a folder, which says nothing of the folder."""

    def __init__(self, root: Path, uri: str = "s3://bucket/runs/run") -> None:
        self.uri = uri
        self._store = LocalStore("", root)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "root":
            raise AttributeError(name)
        return getattr(self._store, name)
