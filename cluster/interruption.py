"""Ctrl-C held back while something is done that must not be left half done."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruption_held(tell: Callable[[], None] = lambda: None) -> Iterator[None]:
    """The first Ctrl-C in here is told and raised at the end, a second one at once.

    An error that happens meanwhile comes before a Ctrl-C that is held.  Where Ctrl-C is ignored, as in the background
    of a script or after SIGTERM, it stays so.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        yield
        return
    held = False

    def hold(number: int, frame: FrameType | None) -> None:
        nonlocal held
        if held:
            raise KeyboardInterrupt
        held = True
        tell()

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        # SIGTERM, which is taken for Ctrl-C, has every later one ignored.
        if signal.getsignal(signal.SIGINT) is hold:
            signal.signal(signal.SIGINT, before)
    if held:
        raise KeyboardInterrupt
