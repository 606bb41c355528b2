"""Uploading the W&B records of a run, and of the trials and folds below it.

``wandb sync`` does the work, log by log.  It marks what it has read to the end with a file beside the log, also where
the server refused the rows; so the server is asked, and the mark stays only if it has them.  Nothing that is marked
is sent again.  One W&B run comes after another, in the order in which they were begun, so that a data set is known
before the training that used it, and a model before its score.

The log of an online start is marked by that start, if it ended with everything sent.  One that was killed, or that
lost its connection, is uploaded like an offline one.  Logs before an online start that trained are passed over: it
asked the server how far it had come and gave it the rows of earlier starts that were missing, and W&B would show them
twice.

No log is changed: of one without an end a copy is sent, cut off behind its last whole record, where ``wandb sync``
would stop.
"""

import os
import re
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bts_dist.wandb_log import LogEnd, read_end, rows_after
from bts_dist.wandb_login import has_rows, last_step
from bts_dist.wandb_record import MARK
from shards.store import LocalStore, ObjectStore

LIMIT_S = 120.0
"""How long ``wandb sync`` may take for a log without content."""
SLOWEST = 50_000.0
"""Bytes per second that an upload is taken to reach at the least."""

_PERSONAL = {"WANDB_USERNAME", "WANDB_USER_EMAIL"}
"""Variables that name a person, which ``wandb sync`` would send."""
_LOG = re.compile(r"(?:.*/)?wandb/(?P<offline>offline-)?run-\d{8}_\d{6}-[^/]+/run-(?P<id>[^/]+)\.wandb")


class RefusedError(RuntimeError):
    """W&B did not take a record; others it may."""


@dataclass(frozen=True)
class LeftRecord:
    """The logs of one W&B run that hold what W&B may not have."""

    wandb_id: str
    begun: float
    """When its first log was begun, in seconds of Unix time."""
    uploaded: tuple[str, ...]
    """Keys of logs in the run's store, in their order."""
    waiting: tuple[str, ...]
    growing: tuple[str, ...]
    """Those of ``waiting`` that may still be written: without an end, and no later start has surely seen them."""


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
            logs[found["id"]].append(_Log(key, found["offline"] is None, read_end(run.get(key))))
    records = [_record(wandb_id, _ordered(found), keys) for wandb_id, found in logs.items()]
    return sorted(records, key=lambda record: record.begun)


class _Log(NamedTuple):
    key: str
    online: bool
    end: LogEnd


def _ordered(logs: Iterable[_Log]) -> list[_Log]:
    """In the order of their rows, which no clock can mislead; those without rows by the time of their start."""
    by_time = sorted((log for log in logs if log.end.begun), key=lambda log: log.end.started)
    by_step = iter(sorted((log for log in by_time if log.end.step), key=lambda log: log.end.step))
    return [next(by_step) if log.end.step else log for log in by_time]


def _record(wandb_id: str, logs: list[_Log], keys: set[str]) -> LeftRecord:
    # A start without rows, which only tags a run, has caught up with nothing.
    covered = [at for at, log in enumerate(logs) if log.online and log.end.step > 0]
    left = logs[max(covered, default=0) :]
    waiting = [log for log in left if log.key + MARK not in keys]
    newest = max((log.end.step for log in logs), default=0)
    return LeftRecord(
        wandb_id,
        min((log.end.started for log in logs), default=0.0),
        tuple(log.key for log in left if log not in waiting),
        tuple(log.key for log in waiting),
        tuple(log.key for log in waiting if not log.end.finished and not _superseded(log, newest)),
    )


def _superseded(log: _Log, newest: int) -> bool:
    """Whether a later start has ended this log: offline, its first row comes after all that it found."""
    return not log.online and 0 < log.end.step < newest


def runs_above(log: str) -> list[str]:
    """The places, below the run that is looked at, whose owner may write this log: ``""`` is that run itself."""
    folders = log.split("/")[:-3]  # without wandb/<start>/<log>
    return ["/".join(folders[:depth]) for depth in range(len(folders) + 1)]


def upload(run: ObjectStore, record: LeftRecord, scratch: Path) -> None:
    """Send what waits of a record and W&B lacks, and mark it.

    Raises:
        RefusedError: W&B did not take all of it; the last words of ``wandb sync`` are in the message.
        RuntimeError: the server does not answer, or ``wandb sync`` came to no end.
    """
    for number, key in enumerate(record.waiting):
        data = run.get(key)
        end = read_end(data)
        has = last_step(end.entity, end.project, record.wandb_id)
        # W&B would give rows that it has, of a broken connection or upload, other steps and keep both.
        again = 0 < end.first <= has
        place = scratch / str(number)
        log = _copied(run, key, rows_after(data, has) if again else data[: end.size], place)
        limit_s = LIMIT_S + sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) / SLOWEST
        words = _wandb_sync(log, scratch, limit_s)
        mark = Path(f"{log}{MARK}")
        if not mark.exists() or not _has_rows(record.wandb_id, end):
            raise RefusedError(f"{run.uri}/{key} was not uploaded; wandb sync said: {words}")
        run.put(key + MARK, mark.read_bytes())


def _has_rows(wandb_id: str, end: LogEnd) -> bool:
    return not end.step or has_rows(end.entity, end.project, wandb_id, end.step)


def _copied(run: ObjectStore, key: str, data: bytes, folder: Path) -> Path:
    """A copy of a log with this content, beside one of its files; where an earlier upload began is not copied."""
    copy = LocalStore(str(folder), folder)
    copy.put(key, data)
    for entry in run.list(f"{key.rpartition('/')[0]}/files/"):
        copy.put(entry.key, run.get(entry.key))
    return folder / key


def _wandb_sync(log: Path, scratch: Path, limit_s: float) -> str:
    """Upload a log, and give the last words of ``wandb sync``.

    Raises:
        RuntimeError: it was still at it after ``limit_s`` seconds.
    """
    command = [sys.executable, "-m", "wandb", "sync", "--include-online", str(log)]
    said = scratch / "said.txt"
    # It keeps logs of its own in a folder where it runs.  In a session of its own, so that all of it can be ended.
    with (
        said.open("w") as file,
        subprocess.Popen(
            command,
            cwd=scratch,
            env={name: value for name, value in os.environ.items() if name not in _PERSONAL},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(
                f"{log.name} was not uploaded: wandb sync came to no end within {limit_s:.0f} s and was stopped; see "
                f"that W&B is well and give the same command again. It said: {_last_words(said)}"
            ) from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return _last_words(said)


def _last_words(said: Path) -> str:
    lines = [line for line in said.read_text(errors="replace").splitlines() if line.strip()]
    return " / ".join(lines[-3:]) or "nothing"
