"""A run's own record, read as it grows: what a command shows of a training whose workers are elsewhere."""

import json
import os
import time
from pathlib import Path
from typing import Any

from bts_dist.config import Config
from bts_dist.run import run_uri, workspace
from bts_dist.track import METRICS, read_metrics
from shards.errors import InputError
from shards.store import LocalStore, open_store

STORE_EVERY_S = 5.0
"""Seconds between two looks into a store.  Workers put their record there with each checkpoint."""
_PATIENCE_S = 5.0
"""How long one look may take; what it misses the next one sees."""

Row = dict[str, Any]


class LiveRecord:
    """The rows that come to a run after this was made, each once.

    A run on a store has two places to look at: the machine's workspace, if rank 0 runs here, and the store.  Rows
    are told apart by their times.
    """

    def __init__(self, config: Config) -> None:
        impatient = config.store.model_copy(update={"deadline_s": _PATIENCE_S})
        run = open_store(run_uri(config), impatient)
        self._file = Growing(workspace(run, config) / METRICS)
        self._store = None if isinstance(run, LocalStore) else run
        self._looked_at = time.monotonic()
        self._newest = max((row["time"] for row in self._stored()), default=0.0)

    def new_rows(self, *, last: bool = False) -> list[Row]:
        """What has come since the last call; the ``last`` one looks everywhere."""
        rows = self._file.new_rows()
        if self._store is not None and (last or time.monotonic() - self._looked_at >= STORE_EVERY_S):
            self._looked_at = time.monotonic()
            newest = max([self._newest, *(row["time"] for row in rows)])
            rows += [row for row in self._stored() if row["time"] > newest]
        self._newest = max([self._newest, *(row["time"] for row in rows)])
        return rows

    def _stored(self) -> list[Row]:
        try:
            return [] if self._store is None else read_metrics(self._store)
        except (InputError, OSError):
            return []  # an outage: the training itself says what it makes of it


class Growing:
    """A run's record, read as it grows beyond what there is now.

    A resumed run drops the rows after its checkpoint and puts a new file in the place of the old one: what of it
    has been read before is told by its rows' times.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode: int | None = None
        self._position = 0
        self._newest = 0.0
        self.new_rows()

    def new_rows(self) -> list[Row]:
        if not self._path.is_file():
            return []
        with self._path.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            replaced = inode != self._inode
            if replaced:
                self._inode, self._position = inode, 0
            file.seek(self._position)
            text = file.read()
        # What follows the last newline is a row that is being written.
        whole = text[: text.rfind(b"\n") + 1]
        self._position += len(whole)
        rows = [json.loads(line) for line in whole.splitlines()]
        if replaced:
            rows = [row for row in rows if row["time"] > self._newest]
        self._newest = max([self._newest, *(row["time"] for row in rows)])
        return rows
