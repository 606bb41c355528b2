"""Which start of a run's workers may publish: the newest.

Each start is an attempt, numbered by files that can be created only once.  Workers of an earlier one, which may live on
after their node was given up, find a higher number and stop before they publish.
"""

import json
import time
from dataclasses import asdict, dataclass

from bts_dist.lease import newest, newest_owner, numbered, read_owner
from shards.store import AlreadyExists, MissingObject, ObjectStore

ATTEMPTS = "attempts/"


class FencedError(RuntimeError):
    """Somebody else has taken over what this process was working on."""


@dataclass(frozen=True)
class AttemptRecord:
    """What an attempt's file says."""

    owner: int | None
    step: int = 0
    time: float = 0.0
    """Seconds since 1970 when it was written last."""
    workers: int = 1
    ended: bool = False
    """Of itself, or because the user said so."""


@dataclass(frozen=True)
class Attempt:
    """One start of a run's workers; the number is part of what they publish."""

    run: ObjectStore
    number: int
    owner: int | None = None
    workers: int = 1

    def read(self) -> AttemptRecord | None:
        """How far it is known to have come."""
        try:
            return AttemptRecord(**json.loads(self.run.get(numbered(ATTEMPTS, self.number))))
        except MissingObject:
            return None

    def write(self, step: int, *, ended: bool = False) -> None:
        """Tell how far it is; the file of an attempt is its own."""
        record = AttemptRecord(self.owner, step, time.time(), self.workers, ended)
        self.run.put(numbered(ATTEMPTS, self.number), json.dumps(asdict(record)).encode())

    def check(self) -> None:
        """Raise ``FencedError`` if a later attempt has begun."""
        last = newest_attempt(self.run)
        if last != self.number:
            raise FencedError(
                f"{self.run.uri}: this is attempt {self.number}, and attempt {last} has begun; it publishes nothing"
            )


def begin(run: ObjectStore, owner: int | None, workers: int = 1) -> Attempt:
    """The next attempt, of so many workers.

    ``owner`` is the number that ``own`` gave, or None where nobody can compete.

    Raises:
        FencedError: the run has another owner by now.
    """
    while True:
        last = newest_owner(run)
        if owner is not None and last != owner:
            raise FencedError(f"{run.uri}: another command (owner {last}) has taken over this run")
        number = newest_attempt(run) + 1
        record = AttemptRecord(owner, time=time.time(), workers=workers)
        try:
            run.put(numbered(ATTEMPTS, number), json.dumps(asdict(record)).encode(), if_absent=True)
        except AlreadyExists:
            continue
        return Attempt(run, number, owner, workers)


def newest_attempt(run: ObjectStore) -> int:
    """The number of the attempt that has begun last; 0 before the first."""
    return newest(run, ATTEMPTS)


def was_interrupted(run: ObjectStore, record: AttemptRecord, owner: int | None) -> bool:
    """Whether an earlier attempt failed under the present ``owner``, or its own owner was killed with it.

    An owner that has ended has told its user what happened; what that user starts later is no recovery.
    """
    if record.ended:
        return False
    if record.owner is None or record.owner == owner:
        return True
    before = read_owner(run, record.owner)
    return before is not None and not before.ended
