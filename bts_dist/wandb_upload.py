"""Uploading the offline W&B records of a run, and of the trials and folds below it.

``wandb sync`` does the work.  It marks what it has uploaded with a file beside the log, and nothing that is marked is
sent again.  It is given one W&B run after another, in the order in which they were begun, so that a data set is
known before the training that used it, and a model before its score.
"""

import re
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from bts_dist.wandb_log import read_end
from shards.store import LocalStore, ObjectStore

_LOG = re.compile(r"(?:.*/)?wandb/offline-run-(?P<begun>\d{8}_\d{6})-[^/]+/run-(?P<id>[^/]+)\.wandb")
_MARK = ".synced"


@dataclass(frozen=True)
class OfflineRecord:
    """All offline logs of one W&B run."""

    wandb_id: str
    begun: str
    """When its first log was begun, as its folder says."""
    uploaded: tuple[str, ...]
    """Keys of logs in the run's store, oldest first."""
    waiting: tuple[str, ...]
    growing: tuple[str, ...]
    """Logs without an end that no later start has taken note of: they may still be written."""


def find_records(run: ObjectStore) -> list[OfflineRecord]:
    """The offline records below a run, in the order in which they were begun.

    Raises:
        ValueError: a log is of a format of W&B's that is not known.
    """
    keys = {entry.key for entry in run.list()}
    logs: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for key in sorted(keys):
        found = _LOG.fullmatch(key)
        if found is not None:
            logs[found["id"]].append((found["begun"], key))
    records = [_record(run, wandb_id, sorted(found), keys) for wandb_id, found in logs.items()]
    return sorted(records, key=lambda record: record.begun)


def _record(run: ObjectStore, wandb_id: str, logs: list[tuple[str, str]], keys: set[str]) -> OfflineRecord:
    ordered = [key for _, key in logs]
    uploaded = tuple(key for key in ordered if key + _MARK in keys)
    waiting = tuple(key for key in ordered if key not in uploaded)
    newest = ordered[-1]
    growing = (newest,) if newest in waiting and not read_end(run.get(newest)).finished else ()
    return OfflineRecord(
        wandb_id, logs[0][0], uploaded, tuple(key for key in waiting if key not in growing), growing
    )


def upload(run: ObjectStore, record: OfflineRecord, scratch: Path) -> None:
    """Send what waits of a record, and mark it.

    Raises:
        RuntimeError: ``wandb sync`` did not upload all of it; its own words are in the message.
    """
    root = run.root if isinstance(run, LocalStore) else _fetched(run, record, scratch)
    command = [sys.executable, "-m", "wandb", "sync", *(str(root / key) for key in record.waiting)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    marks = {key: root / (key + _MARK) for key in record.waiting}
    missing = [key for key, mark in marks.items() if not mark.exists()]
    if not isinstance(run, LocalStore):
        for key, mark in marks.items():
            if key not in missing:
                run.put(key + _MARK, mark.read_bytes())
    if missing:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise RuntimeError(
            f"{run.uri}/{missing[0]} was not uploaded; wandb sync said: {' / '.join(said[-3:]) or 'nothing'}"
        )


def _fetched(run: ObjectStore, record: OfflineRecord, scratch: Path) -> Path:
    """The folders of a record's waiting logs, copied from object storage."""
    copy = LocalStore(str(scratch), scratch)
    for log in record.waiting:
        for entry in run.list(log.rpartition("/")[0] + "/"):
            copy.put(entry.key, run.get(entry.key))
    return scratch
