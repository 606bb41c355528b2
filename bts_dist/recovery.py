"""What an interruption cost: how far the attempt before had come, and how long it took until training went on.

Rank 0 writes from time to time how far its attempt is.  The next attempt compares: the steps between that and the
checkpoint it goes on from are done again, and the time until its own first step was lost.  Times are those of the
machines' clocks, which may be two machines; they serve people, nothing is decided by them.
"""

import json
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from bts_dist.attempt import Attempt, AttemptRecord, was_interrupted
from bts_dist.checkpoint import Progress
from bts_dist.data import Batch
from bts_dist.stall import stall
from bts_dist.track import Tracker, read_metrics
from shards.errors import InputError
from shards.store import AlreadyExists, MissingObject, ObjectStore

FAILURES = "failures/"
BEAT_S = 5.0
"""Seconds between two notes of how far an attempt is."""


@dataclass(frozen=True)
class Interruption:
    """How the attempt before this one ended, which was not of itself."""

    attempt: int
    step: int
    """The last step it is known to have done."""
    time: float
    """Seconds since 1970 when it last got on."""
    cause: str


def record_failure(attempt: Attempt, cause: str) -> None:
    """Keep why an attempt failed, for people; the first cause that is told stands, what follows comes from it."""
    try:
        attempt.run.put(_key(attempt.number), json.dumps({"cause": cause}).encode(), if_absent=True)
    except AlreadyExists:
        return


def interruption(run: ObjectStore, attempt: Attempt) -> Interruption | None:
    """How the attempt before was interrupted; None where it ended of itself, or its command did."""
    before = attempt.number - 1
    record = Attempt(run, before).read() if before else None
    if record is None or not was_interrupted(run, record, attempt.owner):
        return None
    rows = read_metrics(run)
    step = max([record.step, *(row["step"] for row in rows)])
    got_on = max([record.time, *(row["time"] for row in rows)])
    cause = stall(run, before) or _cause(run, before) or _guess(record, attempt)
    return Interruption(before, step, got_on, cause)


@contextmanager
def beating(attempt: Attempt, progress: Progress) -> Iterator[None]:
    """Note how far ``progress`` is, as long as the body runs."""
    stop = threading.Event()

    def beat() -> None:
        told = progress.step
        while not stop.wait(BEAT_S):
            if progress.step == told:
                continue  # a rank that waits for a lost one lives on, but its attempt does not get on
            told = progress.step
            # A store that is down for a while makes a figure of a later summary less exact.
            with suppress(OSError, InputError):
                attempt.write(progress.step)

    thread = threading.Thread(target=beat, name="attempt", daemon=True)
    thread.start()
    ended = False
    try:
        yield
        ended = True
    except KeyboardInterrupt:
        ended = True  # as the user wished
        raise
    finally:
        stop.set()
        thread.join()
        with suppress(OSError, InputError):
            attempt.write(progress.step, ended=ended)


def noting_recovery(
    batches: Iterator[Batch], before: Interruption, progress: Progress, tracker: Tracker
) -> Generator[Batch, None, None]:
    """The same batches; once the first has been trained on, what the interruption cost is recorded."""
    again = max(0, before.step - progress.step)
    for number, batch in enumerate(batches):
        if number == 1:
            down = time.time() - before.time
            tracker.log("recovery", progress.step, {"down_s": down, "steps_again": again})
            tracker.note(
                progress.step,
                f"attempt {before.attempt} was interrupted: {before.cause}; training went on after {down:.0f} s, "
                f"{again} steps are done again",
            )
        yield batch


def recoveries(run: ObjectStore) -> list[dict[str, float]]:
    """What each interruption of a run has cost: ``down_s``, seconds, and ``steps_again``."""
    return [{name: row[name] for name in ("down_s", "steps_again")} for row in read_metrics(run, "recovery")]


def _guess(before: AttemptRecord, attempt: Attempt) -> str:
    if before.owner != attempt.owner:
        return "its command was killed"
    if before.workers < attempt.workers:
        return f"the cluster has room for {attempt.workers} workers"
    return "its workers were lost"


def _cause(run: ObjectStore, attempt: int) -> str | None:
    try:
        cause: str = json.loads(run.get(_key(attempt)))["cause"]
    except MissingObject:
        return None
    return cause


def _key(attempt: int) -> str:
    return f"{FAILURES}{attempt:06d}.json"
