"""Ctrl-C leaves no fold's command behind, also one that is just being started."""

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from bts_dist.config import Config
from cluster import folds

COMMAND = [sys.executable, "-c", "import time; time.sleep(60)"]


def test_ctrl_c_ends_a_command_that_is_being_started(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    starting = threading.Event()
    started: list[subprocess.Popen[str]] = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    class Slow(subprocess.Popen[str]):
        def __init__(self, words: list[str], **options: Any) -> None:
            super().__init__(COMMAND, **options)
            started.append(self)
            starting.set()
            time.sleep(2)

    def interrupt() -> None:
        starting.wait()
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Slow)
    try:
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            folds._run_commands([config] * 3, 2, lambda fold, line: None)
        # By the signal, not of themselves after a minute.
        assert [process.wait() for process in started] == [-signal.SIGTERM] * len(started)
    finally:
        signal.signal(signal.SIGINT, before)
        for process in started:
            process.kill()
