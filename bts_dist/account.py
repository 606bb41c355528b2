"""Where the time of a training goes: every moment belongs to one activity.

The account is a timeline, not a set of stopwatches: to begin an activity is to end the one before.  So the
shares of an epoch add up to one, and what nobody claimed is seen as ``other``.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from statistics import fmean
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from bts_dist.runtime import Runtime, all_reduce

Activity = Literal[
    "data",
    "augment",
    "compute",
    "exchange",
    "optimizer",
    "checkpoint",
    "other",
    "validation",
    "validation_wait",
]
"""
- ``data``: the step waits for its batch.
- ``augment``: the batch goes to the device, is normalised and randomly changed.
- ``compute``: forward and backward passes.  On CUDA, what batch norm exchanges within them is not told apart.
- ``exchange``: the step waits for other ranks, or for what is on its way between them, and does nothing else.
- ``optimizer``: clipping, the weights' update and their moving average.
- ``checkpoint``: training stands still for a copy of its state, or until the last copy is written.
- ``other``: the rest of the loop.
- ``validation``: no part of training time.
- ``validation_wait``: the same; other ranks are not done yet.
"""

ACTIVITIES: tuple[Activity, ...] = get_args(Activity)
VALIDATION: tuple[Activity, ...] = ("validation", "validation_wait")
TRAINING = tuple(activity for activity in ACTIVITIES if activity not in VALIDATION)
WAITING: tuple[Activity, ...] = ("exchange", "validation_wait")
"""What a rank does that has to wait for others."""

Seconds = dict[Activity, float]
"""How long a rank spent on each activity."""


class Clock(Protocol):
    """Time in two parts, so that on a device that runs behind its host no step has to wait to be timed."""

    def mark(self) -> Any:
        """This moment."""

    def between(self, marks: Sequence[Any]) -> list[float]:
        """Seconds from each mark to the next."""


class HostClock:
    def mark(self) -> float:
        return time.perf_counter()

    def between(self, marks: Sequence[float]) -> list[float]:
        return [after - before for before, after in pairwise(marks)]


class CudaClock:
    """Moments at which the current stream of a CUDA device gets where the host is now.

    The host runs ahead, so its own clock says little: this one tells what the device did, or what it stood idle
    for.  What the host waits for while the device computes costs nothing and counts as nothing.  A collective of NCCL
    holds up the stream and not the host, so it is the marks around it that tell how long.  No mark synchronises.
    Written to CUDA's documentation: the tests have no GPU and do not run this class.
    """

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def between(self, marks: Sequence[torch.cuda.Event]) -> list[float]:
        """Waits for the last mark."""
        marks[-1].synchronize()
        return [before.elapsed_time(after) / 1e3 for before, after in pairwise(marks)]


class Account:
    """One rank's account.  It reads the clock and changes nothing, so training has the same bits without it."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock: Clock = clock or HostClock()
        self._seconds: Seconds = dict.fromkeys(ACTIVITIES, 0.0)
        self._timeline: list[tuple[Activity, Any]] = []
        self._switch("other")

    @contextmanager
    def doing(self, activity: Activity) -> Iterator[None]:
        """Count the time as ``activity``, but for what is done within it under another name."""
        outer = self._current
        self._switch(activity)
        try:
            yield
        finally:
            self._switch(outer)

    def watch(self, network: nn.Module) -> None:
        """Count as exchange what ``network``'s backward pass, under DDP, waits for when its own work is done.

        DDP sends gradients while others are still being computed, and waits for them in a callback at the end
        of the backward pass, which it queues with the last gradient.  Callbacks run in turn, so one queued with any
        gradient runs just before it.  The backward pass has to end the activity it is counted under.
        """

        def queue(_: Tensor) -> None:
            Variable._execution_engine.queue_callback(lambda: self._switch("exchange"))

        parameter = next(p for p in network.parameters() if p.requires_grad)
        parameter.register_hook(queue)  # type: ignore[no-untyped-call]

    def settle(self) -> None:
        """Add up the timeline so far.  Waits for the device: call it where training has just done so."""
        seconds = self._clock.between([moment for _, moment in self._timeline])
        for (activity, _), duration in zip(self._timeline, seconds, strict=False):
            self._seconds[activity] += duration
        del self._timeline[:-1]

    def take(self) -> Seconds:
        """The account since this was last asked; waits for the device, as ``settle`` does."""
        self._switch(self._current)
        self.settle()
        taken, self._seconds = self._seconds, dict.fromkeys(ACTIVITIES, 0.0)
        return taken

    def underway(self) -> tuple[Activity, float]:
        """What is being done now, and since when on the host's monotonic clock; any thread may ask."""
        return self._underway

    def _switch(self, activity: Activity) -> None:
        self._current = activity
        # For one thread to write and others to read.
        self._underway = activity, time.monotonic()
        self._timeline.append((activity, self._clock.mark()))


def open_account(device: torch.device) -> Account:
    """An account of the device that the rank trains on."""
    return Account(CudaClock() if device.type == "cuda" else HostClock())


def gather(mine: Seconds, runtime: Runtime) -> list[Seconds]:
    """The accounts of all ranks, on every rank."""
    table = torch.zeros(runtime.world_size, len(ACTIVITIES), dtype=torch.float64)
    table[runtime.rank] = torch.tensor([mine[activity] for activity in ACTIVITIES], dtype=torch.float64)
    rows = all_reduce(table.to(runtime.device)).tolist()
    return [dict(zip(ACTIVITIES, row, strict=True)) for row in rows]


def training_seconds(by_rank: Sequence[Seconds]) -> float:
    """How long the ranks trained, in the mean; they keep step, so they differ by little."""
    return fmean(_total(rank) for rank in by_rank)


def validation_seconds(by_rank: Sequence[Seconds]) -> float:
    """How long the ranks validated, the slowest one."""
    return max(sum(rank[activity] for activity in VALIDATION) for rank in by_rank)


def shares(by_rank: Sequence[Seconds]) -> dict[str, float]:
    """``share/<activity>`` of the training time of all ranks together; they add up to one.

    ``straggler/rank`` waited least for the others, so it is the one they waited for.  ``straggler/wait`` is by how much
    the mean rank's share of exchange exceeds its share: what ranks lost to slower ones, at the least, since the
    straggler may have waited for another one now and then.
    """
    total = sum(map(_total, by_rank))
    exchange = [rank["exchange"] / _total(rank) for rank in by_rank]
    least = min(exchange)
    return {
        **{f"share/{activity}": sum(rank[activity] for rank in by_rank) / total for activity in TRAINING},
        "straggler/rank": exchange.index(least),
        "straggler/wait": max(0.0, fmean(exchange) - least),
    }


def _total(rank: Seconds) -> float:
    return sum(rank[activity] for activity in TRAINING)
