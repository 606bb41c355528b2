"""Checkpoints written beside the training: it stops for a copy of its state, and the rest is a thread's work."""

import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from bts_dist import checkpoint
from bts_dist.checkpoint import Snapshot, TrainState
from bts_dist.config import Config
from bts_dist.lease import Attempt
from bts_dist.runtime import all_reduce
from bts_dist.step import Trainer


class Saver:
    """Saves the states of one attempt, one at a time; for use with ``with``.

    A state is on its way when ``save`` returns.  If that fails, the next call raises it, or leaving the ``with``.
    """

    def __init__(self, attempt: Attempt, keep: int) -> None:
        self._stalled_s = 0.0
        self._attempt = attempt
        self._keep = keep
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, state: TrainState, config: Config, name: str) -> None:
        """Begin to save ``state`` as ``name``; waits for the one before.

        Raises:
            FencedError: a later attempt has begun, so this one may publish no more.
            StoreError: the one before could not be published.
        """
        began = time.monotonic()
        self._wait()
        copy = checkpoint.snapshot(state, config)
        self._pending = self._pool.submit(self._publish, copy, name)
        self._stalled_s += time.monotonic() - began

    def stalled(self) -> float:
        """Seconds that training has stood still for checkpoints since this was last asked."""
        stalled, self._stalled_s = self._stalled_s, 0.0
        return stalled

    def _publish(self, copy: Snapshot, name: str) -> None:
        self._attempt.check()
        with tempfile.TemporaryDirectory(prefix="bts-checkpoint-") as scratch:
            folder = Path(scratch) / name
            copy.write(folder)
            checkpoint.publish(folder, self._attempt.run, name)
        # Looked at again: what an attempt that was overtaken meanwhile would drop is no longer its own.
        self._attempt.check()
        checkpoint.prune(self._attempt.run, name, self._keep)

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # Also after an error or an interruption: what was saved before it must not be lost.
            if error is None:
                self._wait()
        finally:
            self._pool.shutdown()


class Due:
    """Whether a checkpoint is due within an epoch; asked by every rank after every step, and answered alike."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._saved_at = time.monotonic()
        self._warned = False

    def __call__(self) -> bool:
        cfg, step = self._trainer.config.train, self._trainer.state.progress.step
        due = cfg.checkpoint_steps is not None and step % cfg.checkpoint_steps == 0
        # Clocks and notices differ from rank to rank, so these are agreed on, not at every step.
        if not due and step % cfg.log_every == 0:
            late, preempted = self._late(), self._preempted()
            due = self._agreed(late or preempted)
        if due:
            self._saved_at = time.monotonic()
        return due

    def _late(self) -> bool:
        minutes = self._trainer.config.train.checkpoint_minutes
        return minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes

    def _preempted(self) -> bool:
        """Once for each notice."""
        warned, self._warned = self._warned, self._trainer.runtime.preemption()
        return self._warned and not warned

    def _agreed(self, mine: bool) -> bool:
        """Whether any rank says so."""
        runtime = self._trainer.runtime
        return bool(all_reduce(torch.tensor([float(mine)], device=runtime.device)))
