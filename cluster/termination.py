"""SIGTERM ends a command as Ctrl-C does: its workers are ended and its place on the cluster given back.

Ray's job API, Kubernetes and ``kill`` send it.  Ray's own handler would leave by ``SystemExit`` from wherever the
command stands.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT."""
TERMINATED = 143
"""Exit code after SIGTERM: 128 + SIGTERM."""
PARENT = "BTS_PARENT"
"""Names the process that started a command and must not be outlived by it."""

_told: list[int] = []
"""The signals that have come, of which the first is heeded."""


def heed_termination() -> None:
    """Take SIGTERM for Ctrl-C from here on.

    Not under torchrun: its processes wait for each other in calls that no handler ends.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        signal.signal(signal.SIGTERM, _terminate)


def end_with_parent() -> None:
    """Have this command get SIGTERM once the process that ``PARENT`` names is gone: it may be killed without a word."""
    parent = os.environ.pop(PARENT, None)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


@contextmanager
def termination_heeded() -> Iterator[None]:
    """Keeps the handler in place over ``ray.init``, which sets its own."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is _terminate:
            signal.signal(signal.SIGTERM, before)


def interrupted_code() -> int:
    """The exit code of a command that was interrupted."""
    return TERMINATED if _told else INTERRUPTED


def end_wandb() -> None:
    """End W&B's own process, if there is one.

    Left to W&B, that is done when this process ends: without end where the other one is frozen, and with a traceback or
    an exit code of its own where it is gone, as when Ray stops a job with all that it started.
    """
    if "wandb" in sys.modules:
        from bts_dist import wandb_process

        wandb_process.end()


def _terminate(number: int, frame: FrameType | None) -> None:
    _told.append(number)
    if len(_told) > 1:
        return
    # Whatever Ctrl-C does now: Ray's training has a handler of its own, which ends the workers.
    interrupt = signal.getsignal(signal.SIGINT)
    # Whoever ends a command may also end what it started, which that command itself interrupts: once is enough.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if callable(interrupt):
        interrupt(signal.SIGINT, frame)
    else:
        raise KeyboardInterrupt
