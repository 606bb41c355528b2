"""Checkpoints written beside the training: it stops for a copy of its state, and the rest is a thread's work."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from bts_dist import checkpoint
from bts_dist.attempt import Attempt
from bts_dist.checkpoint import Memories, Snapshot, TrainState
from bts_dist.config import Config
from bts_dist.tensor_file import TensorMemory


class Saver:
    """Saves the states of one attempt, one at a time; for use with ``with``.

    A state is on its way when ``save`` returns.  If that fails, the next call raises it, or leaving the ``with``.
    """

    def __init__(self, attempt: Attempt, keep: int) -> None:
        self.published = 0
        """Step of the newest checkpoint of this attempt, 0 before the first: nothing up to it will be done again."""
        self.took_s = 0.0
        """Seconds from the beginning of the last save until it was published."""
        self.attempt = attempt
        self._keep = keep
        # Of the copies; the one before is stored when the next is taken.
        self._memories = Memories(TensorMemory)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, state: TrainState, config: Config, name: str) -> None:
        """Begin to save ``state`` as ``name``; waits for the one before.

        Raises:
            FencedError: a later attempt has begun, so this one may publish no more.
            StoreError: the one before could not be published.
        """
        began = time.monotonic()
        self.wait()
        copy = checkpoint.snapshot(state, config, self._memories)
        self._pending = self._pool.submit(self._publish, copy, name, began)

    def wait(self) -> None:
        """Return once the last state is stored; raises as the next ``save`` would."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _publish(self, copy: Snapshot, name: str, began: float) -> None:
        self.attempt.check()
        checkpoint.publish(copy, self.attempt.run, name)
        self.took_s = time.monotonic() - began
        # Looked at again: what an attempt that was overtaken meanwhile would drop is no longer its own.
        self.attempt.check()
        self.published = checkpoint.step_of(name)
        checkpoint.prune(self.attempt.run, name, self._keep)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # Also after an error or an interruption: what was saved before it must not be lost.
            if error is None:
                self.wait()
        finally:
            self._pool.shutdown()
