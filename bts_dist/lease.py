"""Who may train a run: one command at a time.

A command that trains a run owns it, by a numbered file that can be created only once, and keeps a count going in
that file.  A count that stands still is a dead owner's, and the next number is free.  Of its starts the newest may
publish (``attempt``).

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
WRITERS = "writers/"
BEAT_S = 5.0
"""Seconds between two counts."""
PATIENCE_S = 20.0
"""A count that stands still for so long is a dead owner's."""

Note = Callable[[str], None]


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
    with _counting(run, numbered(OWNERS, number), me):
        yield number


@contextmanager
def writing(run: ObjectStore, name: str) -> Iterator[None]:
    """Let others tell that this process writes what is called ``name``, beside whoever owns ``run``."""
    me, key = _this_process(), _writer_key(name)
    run.put(key, _dump(me))
    with _counting(run, key, me):
        yield


@dataclass(frozen=True)
class Sign:
    """What a process left of itself in a run, as it was found."""

    run: ObjectStore
    key: str
    owner: Owner

    def lives(self, note: Note) -> bool:
        """Whether it is still at work; on another machine it is watched for up to ``PATIENCE_S``."""
        return _lives(self.run, self.key, self.owner, note, "at work on")


def newest_owner(run: ObjectStore) -> int:
    """The number of the ownership that was taken last; 0 before the first."""
    return newest(run, OWNERS)


def read_owner(run: ObjectStore, number: int) -> Owner | None:
    """What the file of an ownership says; None if there is none."""
    return _read(run, numbered(OWNERS, number))


def newest(run: ObjectStore, prefix: str) -> int:
    """The highest number of the files there are below ``prefix``; 0 if there are none."""
    return max((int(Path(entry.key).stem) for entry in run.list(prefix)), default=0)


def numbered(prefix: str, number: int) -> str:
    """The key of such a file."""
    return f"{prefix}{number:06d}.json"


def last_owner(run: ObjectStore) -> Sign | None:
    """Who owned a run last; None if nobody ever did."""
    number = newest_owner(run)
    return _sign(run, numbered(OWNERS, number)) if number else None


def last_writer(run: ObjectStore, name: str) -> Sign | None:
    """Who wrote last what is called ``name``; None if nobody said so."""
    return _sign(run, _writer_key(name))


def _claim(run: ObjectStore, me: Owner, note: Note) -> int:
    while True:
        last = newest_owner(run)
        if last:
            _check_dead(run, last, note)
        try:
            run.put(numbered(OWNERS, last + 1), _dump(me), if_absent=True)
        except AlreadyExists:
            continue  # of two that found it free, the other was first
        return last + 1


def _check_dead(run: ObjectStore, number: int, note: Note) -> None:
    """Return once the owner is known to be gone; raise ``InputError`` as soon as it is known to live."""
    key = numbered(OWNERS, number)
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


def _read(run: ObjectStore, key: str) -> Owner | None:
    try:
        return Owner(**json.loads(run.get(key)))
    except MissingObject:
        return None


def _sign(run: ObjectStore, key: str) -> Sign | None:
    owner = _read(run, key)
    return None if owner is None else Sign(run, key, owner)


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
