"""W&B's own process (wandb-core): what its calls raise, how long it may take, and its end.

Most calls hand it something over a socket, and wait without end where it is frozen: for an answer, or for room once
the socket's buffer is full.  So it is killed when it is stuck.  What it wrote to disk until then is kept.
"""

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from bts_dist.wandb_login import without_userinfo

STUCK_S = 30.0
"""How long it may take for what needs no server.  That is milliseconds, and seconds on a machine that is very busy."""
_LOOK_S = 1.0
"""Time is counted in pieces of this length: a machine or job that was halted goes on with all its time left."""
_LEAVE_S = 0.5


class StuckError(ConnectionError):
    """It did not answer in time and was killed."""


def process_errors() -> tuple[type[Exception], ...]:
    """What W&B's calls raise when its process is gone, as when the machine ran out of memory, or refuses."""
    import wandb
    from wandb.sdk.lib.service.service_token import WandbServiceConnectionError
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError
    from wandb.sdk.mailbox.mailbox_handle import ServerResponseError

    lost = (HandleAbandonedError, MailboxClosedError, ServerResponseError, WandbServiceConnectionError)
    return ConnectionError, *lost, wandb.Error


def said(error: Exception) -> str:
    """What W&B says of an error, in one line."""
    return without_userinfo(" ".join(str(error).split())) or type(error).__name__


@contextmanager
def limited(own_s: float = 0.0) -> Iterator[None]:
    """Around calls of W&B's: kills its process ``STUCK_S`` after the ``own_s`` seconds that they may take.

    Raises:
        StuckError: it was killed, and a call failed by that.
    """
    process = _process()  # as it is now: an end forgets it before it waits for it
    if process is None:
        yield
        return
    limit_s = own_s + STUCK_S
    done, killed = threading.Event(), threading.Event()

    def watch() -> None:
        left_s = limit_s
        while left_s > 0:
            if done.wait(min(left_s, _LOOK_S)):
                return
            left_s -= _LOOK_S
        killed.set()
        process.kill()

    threading.Thread(target=watch, name="wandb-limit", daemon=True).start()
    try:
        yield
    except process_errors() as error:
        if killed.is_set():
            raise StuckError(f"it did not answer within {limit_s:g} s and was killed") from error
        raise
    finally:
        done.set()


def end() -> None:
    """End it, if there is one, and wait for that.

    Where it was killed W&B would end this process with a traceback, or with an exit code of its own.
    """
    import wandb

    with suppress(*process_errors(), SystemExit), limited():
        wandb.teardown()


def leave() -> None:
    """Let go of it: it is gone, or goes on trying and holds the run's id.  The next run has its own."""
    process = _process()
    # It waits for the server.
    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    thread.join(_LEAVE_S)
    if thread.is_alive() and process is not None:
        process.kill()  # it would outlive this process if frozen, and hold its output open
        thread.join(_LEAVE_S)


def _process() -> "subprocess.Popen[bytes] | None":
    """It, if this process has started one.

    As a child that nobody has waited for, which no other process can be mistaken for.
    """
    from wandb.sdk import wandb_setup

    try:
        here = wandb_setup._singleton._pid == os.getpid()  # in a fork what is found is the parent's
        found = wandb_setup._singleton._connection._proc._process
    except AttributeError:  # there is none, or it is another's
        return None
    return found if here and isinstance(found, subprocess.Popen) else None
