"""Training that is killed with SIGKILL at a chosen point, in a process of its own.

The processes are forked from one that has loaded torch and done nothing else, so each starts in a moment.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from bts_dist import checkpoint, saver
from bts_dist import train as module
from bts_dist import validate as validation
from bts_dist.config import Config
from bts_dist.lease import own
from bts_dist.runtime import LocalRuntime
from bts_dist.wandb_log import read_end
from shards.store import LocalStore

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["kill_points"])


@dataclass(frozen=True)
class Point:
    """Where a process dies: at the ``at``-th time, counted from 1, that it comes by."""

    where: Literal["step", "validation", "upload", "after upload", "pruning", "report"]
    at: int
    written: bool = False
    """Whether it lives on until W&B's process has written a row; what is younger dies with it."""

    def __str__(self) -> str:
        return f"{self.where} {self.at}"


def run_process(config: Config, root: Path, point: Point | None) -> int | None:
    """Train the run at ``root`` until it is finished, or killed at ``point``; the exit code."""
    process = _PROCESSES.Process(target=_train, args=(config.model_dump_json(), str(root), point))
    process.start()
    process.join(120)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def _train(config: str, root: str, point: Point | None) -> None:
    torch.set_num_threads(1)
    # Set when the tests' own process has used W&B: its service would outlive this process, and the run in it.
    os.environ.pop("WANDB_SERVICE", None)
    run = LocalStore(root, Path(root))
    if point is not None:
        _set(point, run.root)
    with own(run, lambda _: None) as owner:
        module.train(
            Config.model_validate_json(config),
            LocalRuntime(0, 1, 0, torch.device("cpu")),
            run,
            run.root,
            owner,
        )


def _set(point: Point, root: Path) -> None:
    die = _Countdown(point.at, _row_written(root) if point.written else lambda: True)
    match point.where:
        case "step":
            _after(module, "train_step", die)
        case "validation":
            _after(validation, "predict_patient", die)
        case "upload":
            put = LocalStore.put

            def dying_put(self: LocalStore, key: str, *arguments: Any, **options: Any) -> None:
                put(self, key, *arguments, **options)
                if key.startswith(checkpoint.FOLDER):
                    die()

            LocalStore.put = dying_put  # type: ignore[method-assign]
        case "after upload":
            _after(saver.checkpoint, "publish", die)
        case "pruning":
            delete = LocalStore.delete

            def dying_delete(self: LocalStore, key: str) -> None:
                delete(self, key)
                die()

            LocalStore.delete = dying_delete  # type: ignore[method-assign]
        case "report":
            _after(LocalRuntime, "report", die)


def _row_written(root: Path) -> Callable[[], bool]:
    """Whether a W&B log that is begun from now on holds a row."""

    def logs() -> set[Path]:
        return set(root.glob("wandb/offline-run-*/*.wandb"))

    before = logs()
    return lambda: any(read_end(log.read_bytes()).step for log in logs() - before)


class _Countdown:
    def __init__(self, times: int, ready: Callable[[], bool]) -> None:
        self._left = times
        self._ready = ready

    def __call__(self) -> None:
        self._left -= 1
        if self._left == 0:
            while not self._ready():
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)


def _after(holder: object, name: str, die: Callable[[], None]) -> None:
    done = getattr(holder, name)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        result = done(*arguments, **options)
        die()
        return result

    setattr(holder, name, wrapped)
