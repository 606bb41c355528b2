"""Ranks that stand still: found and named while the others wait for them.

When one rank hangs in a driver, a file system or a library, all of them stop.  Those that wait for it say so in their
account (``account.WAITING``); the one that does not is the one at fault.  So every rank watches itself from a second
thread, and leaves a file in the run when it has done one thing for too long; rank 0, once it has to wait as long,
looks for such files and tells people.  A process that is frozen as a whole cannot do that: Ray's health check finds it.

Nothing is ended here.  A rank that waits for a slow store looks the same, and that is ridden out.
"""

import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bts_dist.account import WAITING, Account
from bts_dist.attempt import Attempt
from shards.errors import InputError
from shards.store import MissingObject, ObjectStore

STALLS = "stalls/"
LOOK_S = 5.0
STILL_S = 45.0
"""Longest time that one activity is taken to last: a batch to read, a pass, a patient to validate."""

_OURS = {"bts_dist", "shards", "cluster"}


@dataclass
class _Watch:
    attempt: Attempt
    rank: int
    account: Account
    thread: int
    """The thread that trains."""
    tell: Callable[[str], None]

    def __post_init__(self) -> None:
        self._said: float | None = None
        self._told: set[str] = set()

    def look(self) -> None:
        """Say that this rank stands still, or that it got on; on rank 0, tell people which ranks do."""
        activity, since = self.account.underway()
        seconds = time.monotonic() - since
        if self._said is not None and self._said != since:
            self.attempt.run.delete(self._key(self.rank))
            self._said = None
        if seconds < STILL_S:
            return
        if activity not in WAITING and self._said is None:
            text = (
                f"rank {self.rank} (process {os.getpid()} on {socket.gethostname()}) has stood still for "
                f"{seconds:.0f} s in {activity}{self._place()}"
            )
            self.attempt.run.put(self._key(self.rank), json.dumps({"text": text}).encode())
            self._said = since
        if self.rank == 0:
            for text in _found(self.attempt.run, self.attempt.number):
                if text not in self._told:
                    self._told.add(text)
                    self.tell(text)

    def _place(self) -> str:
        """The innermost line of ours, and what it called."""
        frame = sys._current_frames().get(self.thread)
        stack = traceback.extract_stack(frame)
        ours = [entry for entry in stack if Path(entry.filename).parent.name in _OURS]
        if frame is None or not ours:
            return ""
        at = f", {Path(ours[-1].filename).name}:{ours[-1].lineno} in {ours[-1].name}"
        return at if stack[-1] is ours[-1] else f"{at}, which called {stack[-1].name}"

    def _key(self, rank: int) -> str:
        return f"{STALLS}{self.attempt.number:06d}-{rank}.json"


@contextmanager
def watching(attempt: Attempt, rank: int, account: Account, tell: Callable[[str], None]) -> Iterator[None]:
    """Watch this rank's training, which is what the calling thread does in the body; ``tell`` is rank 0's."""
    watch = _Watch(attempt, rank, account, threading.get_ident(), tell)
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(LOOK_S):
            # A store that is down for a while keeps the ranks from telling, and from nothing else.
            with suppress(OSError, InputError):
                watch.look()

    thread = threading.Thread(target=run, name="stall", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def stall(run: ObjectStore, attempt: int) -> str | None:
    """The rank that stood still when an attempt ended, of several the lowest; None if there was none."""
    return next(iter(_found(run, attempt)), None)


def _found(run: ObjectStore, attempt: int) -> list[str]:
    found = []
    for entry in run.list(f"{STALLS}{attempt:06d}-"):
        with suppress(MissingObject):  # it has got on meanwhile
            found.append(str(json.loads(run.get(entry.key))["text"]))
    return found
