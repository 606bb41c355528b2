"""When a training saves: after each epoch, every so many steps or minutes, and in time before a node is taken away."""

import math
import time

import torch

from bts_dist.recovery import record_failure
from bts_dist.saver import Saver
from bts_dist.step import Trainer
from bts_dist.track import Tracker

LOOK_S = 2.0
"""Seconds between two looks at the clock and for notices."""


class Saving:
    """The checkpoints of one attempt; every rank has one, and all say and do the same at each step.

    Clocks and notices differ from rank to rank, so every ``LOOK_S`` or so the ranks look at them together.  When a
    node will be taken away, a checkpoint is due at once, and another one just in time.

    How many steps that is follows from the time that the last few took.  What lies between two epochs, or a save, is
    no part of it, and may have taken long: the ranks look at the first two steps after it.
    """

    def __init__(self, trainer: Trainer, saver: Saver, tracker: Tracker) -> None:
        self._trainer, self._saver, self._tracker = trainer, saver, tracker
        self._saved_at = time.monotonic()
        self._looked: tuple[float, int] | None = None
        self._next_look = 0
        self._left = math.inf
        self._hurried = False

    def save(self) -> None:
        """Begin to save the state at this step, which is the same on all ranks."""
        self._saved_at = time.monotonic()
        self._looked, self._next_look = None, 0
        if self._trainer.runtime.rank > 0:
            return
        self._saver.attempt.check()  # before the record: an attempt that was overtaken writes to nothing any more
        # The record goes first: a checkpoint is never ahead of the rows that led to it.
        self._tracker.flush()
        self._saver.save(self._trainer.state, self._trainer.config, self._trainer.checkpoint_name)

    def due(self) -> bool:
        """Whether to save within the epoch, after the step just done."""
        cfg, step = self._trainer.config.train, self._trainer.state.progress.step
        due = cfg.checkpoint_steps is not None and step % cfg.checkpoint_steps == 0
        return (step >= self._next_look and self._look(step)) or due

    def _look(self, step: int) -> bool:
        runtime, now = self._trainer.runtime, time.monotonic()
        minutes = self._trainer.config.train.checkpoint_minutes
        late = minutes is not None and now - self._saved_at >= 60 * minutes
        pace = LOOK_S if self._looked is None else (now - self._looked[0]) / (step - self._looked[1])
        left = runtime.preemption()
        mine = [float(late), pace, self._saver.took_s, math.inf if left is None else left]
        said = torch.tensor(mine, dtype=torch.float64, device=runtime.device)
        lates, paces, took, lefts = (self._trainer.all_reduce(said) / runtime.world_size).tolist()
        self._looked = now, step
        self._next_look = step + max(1, int(LOOK_S / max(paces, 1e-6)))
        # Only rank 0 saves, so its seconds come back divided by the number of ranks.
        return lates > 0 or self._preempted(lefts, paces, took * runtime.world_size)

    def _preempted(self, left: float, pace: float, took: float) -> bool:
        """Once when a notice comes, and once more when a save would just end before the node goes."""
        before, self._left = self._left, left
        if not math.isfinite(left):
            self._hurried = False
            return False
        first = not math.isfinite(before)
        if first:
            self._note(f"a worker's node is taken away in {left:.0f} s: saving")
            if self._trainer.runtime.rank == 0:
                record_failure(self._saver.attempt, "a worker's node was taken away with notice")
        # Once for each deadline: a later one has its own last moment.
        hurried = self._hurried and left <= before
        self._hurried = hurried or left < 2 * max(LOOK_S, pace) + 1.5 * took
        last = self._hurried and not hurried and not first
        if last:
            self._note(f"its node goes in {left:.0f} s: saving once more")
        return first or last

    def _note(self, text: str) -> None:
        if self._trainer.runtime.rank == 0:
            self._tracker.note(self._trainer.state.progress.step, text)
