"""Ctrl-C for commands that tests start."""

import signal


def heed_interrupts() -> None:
    """For a new process: a shell that runs the tests in the background has all of them ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
