"""Who may write to a run: one command at a time, and of its attempts the newest.

A command that trains a run owns it, by a numbered file that can be created only once, and keeps a count going in
that file.  A count that stands still is a dead owner's, and the next number is free.  Each start of the workers is
an attempt, numbered in the same way: workers of an earlier one, which may live on after their node was given up,
find a higher number and stop before they publish.

A stage that records beside a training owns nothing.  It leaves a count under the name of what it writes, so that
others leave that alone while it lives.

No clock is compared with another machine's: an owner elsewhere is judged by watching its count.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from shards.errors import InputError
from shards.process import born
from shards.store import AlreadyExists, MissingObject, ObjectStore

OWNERS = "owners/"
ATTEMPTS = "attempts/"
WRITERS = "writers/"
BEAT_S = 5.0
"""Seconds between two counts."""
PATIENCE_S = 20.0
"""A count that stands still for so long is a dead owner's."""

Note = Callable[[str], None]


class FencedError(RuntimeError):
    """Somebody else has taken over what this process was working on."""


@dataclass(frozen=True)
class Owner:
    """What an owner's file says."""

    host: str
    machine: str
    """Tells whether ``pid`` can be looked up from here: the same boot, the same process numbers."""
    pid: int
    born: str
    """When the process was started, so that a later one of the same number is not taken for it."""
    count: int = 0
    ended: bool = False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@contextmanager
def own(run: ObjectStore, note: Note) -> Iterator[int]:
    """Be the one command that trains ``run``, and give the ownership's number.

    Raises:
        InputError: another command is training it.
    """
    me = _this_process()
    number = _claim(run, me, note)
    with _counting(run, _key(OWNERS, number), me):
        yield number


@contextmanager
def writing(run: ObjectStore, name: str) -> Iterator[None]:
    """Let others tell that this process writes what is called ``name``, beside whoever owns ``run``."""
    me, key = _this_process(), _writer_key(name)
    run.put(key, _dump(me))
    with _counting(run, key, me):
        yield


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

    def read(self) -> "AttemptRecord | None":
        """How far it is known to have come."""
        try:
            return AttemptRecord(**json.loads(self.run.get(_key(ATTEMPTS, self.number))))
        except MissingObject:
            return None

    def write(self, step: int, *, ended: bool = False) -> None:
        """Tell how far it is; the file of an attempt is its own."""
        record = AttemptRecord(self.owner, step, time.time(), self.workers, ended)
        self.run.put(_key(ATTEMPTS, self.number), json.dumps(asdict(record)).encode())

    def check(self) -> None:
        """Raise ``FencedError`` if a later attempt has begun."""
        newest = newest_attempt(self.run)
        if newest != self.number:
            raise FencedError(
                f"{self.run.uri}: this is attempt {self.number}, and attempt {newest} has begun; it publishes nothing"
            )


def begin(run: ObjectStore, owner: int | None, workers: int = 1) -> Attempt:
    """The next attempt, of so many workers.

    ``owner`` is the number that ``own`` gave, or None where nobody can compete.

    Raises:
        FencedError: the run has another owner by now.
    """
    while True:
        newest = _newest(run, OWNERS)
        if owner is not None and newest != owner:
            raise FencedError(f"{run.uri}: another command (owner {newest}) has taken over this run")
        number = newest_attempt(run) + 1
        record = AttemptRecord(owner, time=time.time(), workers=workers)
        try:
            run.put(_key(ATTEMPTS, number), json.dumps(asdict(record)).encode(), if_absent=True)
        except AlreadyExists:
            continue
        return Attempt(run, number, owner, workers)


def newest_attempt(run: ObjectStore) -> int:
    """The number of the attempt that has begun last; 0 before the first."""
    return _newest(run, ATTEMPTS)


@dataclass(frozen=True)
class Sign:
    """What a process left of itself in a run, as it was found."""

    run: ObjectStore
    key: str
    owner: Owner

    def lives(self, note: Note) -> bool:
        """Whether it is still at work; on another machine it is watched for up to ``PATIENCE_S``."""
        return _lives(self.run, self.key, self.owner, note, "at work on")


def last_owner(run: ObjectStore) -> Sign | None:
    """Who owned a run last; None if nobody ever did."""
    newest = _newest(run, OWNERS)
    return _sign(run, _key(OWNERS, newest)) if newest else None


def last_writer(run: ObjectStore, name: str) -> Sign | None:
    """Who wrote last what is called ``name``; None if nobody said so."""
    return _sign(run, _writer_key(name))


def was_interrupted(run: ObjectStore, record: AttemptRecord, owner: int | None) -> bool:
    """Whether an earlier attempt failed under the present ``owner``, or its own owner was killed with it.

    An owner that has ended has told its user what happened; what that user starts later is no recovery.
    """
    if record.ended:
        return False
    if record.owner is None or record.owner == owner:
        return True
    before = _read(run, _key(OWNERS, record.owner))
    return before is not None and not before.ended


def _claim(run: ObjectStore, me: Owner, note: Note) -> int:
    while True:
        newest = _newest(run, OWNERS)
        if newest:
            _check_dead(run, newest, note)
        try:
            run.put(_key(OWNERS, newest + 1), _dump(me), if_absent=True)
        except AlreadyExists:
            continue  # of two that found it free, the other was first
        return newest + 1


def _check_dead(run: ObjectStore, number: int, note: Note) -> None:
    """Return once the owner is known to be gone; raise ``InputError`` as soon as it is known to live."""
    key = _key(OWNERS, number)
    owner = _read(run, key)
    if owner is None or owner.ended:
        return
    if _lives(run, key, owner, note, "training"):
        raise InputError(
            f"{run.uri} is being trained by {owner}; wait for it, stop it, or give this run another name with "
            "--set run.name=…"
        )
    note(f"{owner} was training this run and is gone; going on from what it saved")


def _lives(run: ObjectStore, key: str, owner: Owner, note: Note, work: str) -> bool:
    if owner.ended:
        return False
    if owner.machine == _machine():
        return born(owner.pid) == owner.born
    note(f"{owner} was {work} this run; looking for {PATIENCE_S:g} s whether it still is")
    return _counts_on(run, key, owner.count)


def _counts_on(run: ObjectStore, key: str, count: int) -> bool:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        time.sleep(BEAT_S / 5)
        owner = _read(run, key)
        if owner is None or owner.ended:
            return False
        if owner.count != count:
            return True
    return False


@contextmanager
def _counting(run: ObjectStore, key: str, me: Owner) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=_count, args=(run, key, me, stop), name="ownership", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        run.put(key, _dump(replace(me, ended=True)))


def _count(run: ObjectStore, key: str, me: Owner, stop: threading.Event) -> None:
    while not stop.wait(BEAT_S):
        me = replace(me, count=me.count + 1)
        try:
            run.put(key, _dump(me))
        except (OSError, InputError):
            continue  # a store that is down for a while costs the ownership only if somebody wants it


def _newest(run: ObjectStore, prefix: str) -> int:
    """The highest number there is, or nought."""
    return max((int(Path(entry.key).stem) for entry in run.list(prefix)), default=0)


def _read(run: ObjectStore, key: str) -> Owner | None:
    try:
        return Owner(**json.loads(run.get(key)))
    except MissingObject:
        return None


def _sign(run: ObjectStore, key: str) -> Sign | None:
    owner = _read(run, key)
    return None if owner is None else Sign(run, key, owner)


def _key(prefix: str, number: int) -> str:
    return f"{prefix}{number:06d}.json"


def _writer_key(name: str) -> str:
    return f"{WRITERS}{name}.json"


def _dump(owner: Owner) -> bytes:
    return json.dumps(asdict(owner)).encode()


def _this_process() -> Owner:
    return Owner(socket.gethostname(), _machine(), os.getpid(), born(os.getpid()))


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    numbers = Path("/proc/self/ns/pid")
    return f"{boot.read_text().strip()} {os.readlink(numbers)}"
