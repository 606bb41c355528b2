"""Uploading the W&B records of a run, and of the trials and folds below it.

``wandb sync`` does the work.  It marks what it has uploaded with a file beside the log, and nothing that is marked is
sent again.  It is given one W&B run after another, in the order in which they were begun, so that a data set is
known before the training that used it, and a model before its score.

The log of an online start is marked by that start, if it ended with everything sent.  One that was killed, or that
lost its connection, is uploaded like an offline one.  Logs before an online start that trained are passed over: it
asked the server how far it had come and gave it the rows of earlier starts that were missing, and W&B would show them
twice.
"""

import re
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from bts_dist.wandb_log import read_end, rows_after
from bts_dist.wandb_login import last_step
from bts_dist.wandb_record import MARK, end_earlier_logs
from shards.store import LocalStore, ObjectStore

_LOG = re.compile(
    r"(?:.*/)?wandb/(?P<offline>offline-)?run-(?P<begun>\d{8}_\d{6})-[^/]+/run-(?P<id>[^/]+)\.wandb"
)


@dataclass(frozen=True)
class LeftRecord:
    """The logs of one W&B run that hold what W&B may not have."""

    wandb_id: str
    begun: str
    """When its first log was begun, as its folder says."""
    uploaded: tuple[str, ...]
    """Keys of logs in the run's store, oldest first."""
    waiting: tuple[str, ...]
    growing: tuple[str, ...]
    """Logs without an end that no later start has taken note of: they may still be written."""


def find_records(run: ObjectStore) -> list[LeftRecord]:
    """The records below a run, in the order in which they were begun.

    Raises:
        ValueError: a log is of a format of W&B's that is not known.
    """
    keys = {entry.key for entry in run.list()}
    logs: defaultdict[str, list[_Log]] = defaultdict(list)
    for key in sorted(keys):
        found = _LOG.fullmatch(key)
        if found is not None:
            logs[found["id"]].append(_Log(found["begun"], key, found["offline"] is None))
    records = [_record(run, wandb_id, sorted(found), keys) for wandb_id, found in logs.items()]
    return sorted(records, key=lambda record: record.begun)


class _Log(NamedTuple):
    begun: str
    key: str
    online: bool


def _record(run: ObjectStore, wandb_id: str, logs: list[_Log], keys: set[str]) -> LeftRecord:
    # A start without rows, which only tags a run, has caught up with nothing.
    covered = [at for at, log in enumerate(logs) if log.online and read_end(run.get(log.key)).step > 0]
    ordered = [log.key for log in logs[max(covered, default=0) :]]
    uploaded = tuple(key for key in ordered if key + MARK in keys)
    waiting = tuple(key for key in ordered if key not in uploaded)
    newest = ordered[-1]
    growing = (newest,) if newest in waiting and not read_end(run.get(newest)).finished else ()
    return LeftRecord(
        wandb_id, logs[0].begun, uploaded, tuple(key for key in waiting if key not in growing), growing
    )


def runs_above(log: str) -> list[str]:
    """The places, below the run that is looked at, whose owner may write this log: ``""`` is that run itself."""
    folders = log.split("/")[:-3]  # without wandb/<start>/<log>
    return ["/".join(folders[:depth]) for depth in range(len(folders) + 1)]


def end_killed(run: ObjectStore, record: LeftRecord) -> LeftRecord:
    """The record when whoever wrote its growing logs is gone: they wait, cut off behind their last whole row."""
    for log in record.growing:
        end_earlier_logs(run, record.wandb_id, "".join(f"{folder}/" for folder in log.split("/")[:-3]))
    there = {entry.key for log in record.growing for entry in run.list(log)}
    left = tuple(log for log in record.growing if log in there)  # one without a beginning is gone
    return replace(record, waiting=record.waiting + left, growing=())


def upload(run: ObjectStore, record: LeftRecord, scratch: Path) -> None:
    """Send what waits of a record and W&B lacks, and mark it.

    Raises:
        RuntimeError: ``wandb sync`` did not upload all of it; its own words are in the message.
    """
    ends = {key: read_end(run.get(key)) for key in record.waiting}
    newest = ends[record.waiting[-1]]
    has = last_step(newest.entity, newest.project, record.wandb_id)
    # W&B would give rows that it has, of a broken connection or upload, other steps and keep both.
    again = [key for key, end in ends.items() if 0 < end.first <= has]
    in_place = isinstance(run, LocalStore) and not again
    scratch.mkdir(parents=True, exist_ok=True)
    root = run.root.absolute() if isinstance(run, LocalStore) and in_place else _fetched(run, record, scratch)
    for key in again:
        (root / key).write_bytes(rows_after(run.get(key), has))
    command = [sys.executable, "-m", "wandb", "sync", "--include-online", *(str(root / key) for key in ends)]
    # It keeps logs of its own in a folder where it runs.
    done = subprocess.run(command, cwd=scratch, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    marks = {key: root / (key + MARK) for key in record.waiting}
    missing = [key for key, mark in marks.items() if not mark.exists()]
    if not in_place:
        for key, mark in marks.items():
            if key not in missing:
                run.put(key + MARK, mark.read_bytes())
    if missing:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise RuntimeError(
            f"{run.uri}/{missing[0]} was not uploaded; wandb sync said: {' / '.join(said[-3:]) or 'nothing'}"
        )


def _fetched(run: ObjectStore, record: LeftRecord, scratch: Path) -> Path:
    """Copies of the folders of a record's waiting logs."""
    copy = LocalStore(str(scratch), scratch)
    for log in record.waiting:
        for entry in run.list(log.rpartition("/")[0] + "/"):
            copy.put(entry.key, run.get(entry.key))
    return scratch
