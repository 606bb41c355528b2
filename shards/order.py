"""The order of samples in an epoch, as a pure function of (shard sizes, seed, epoch, global batch).

Nothing here has state or draws from a generator: a position in training is one integer, and any rank of any
world size can ask for any step directly.  Shards are permuted, laid end to end, and shuffled inside windows of
a few shards, so reads stay nearly sequential and jumping to a step costs one window, not one epoch.

The permutations sort by SplitMix64 hashes (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014), so they are the same on every platform and with every numpy version.
"""

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def hash64(*words: int | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64 of a sequence of words, each a non-negative int or a uint64 array; arrays broadcast."""
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for word in words:
            z = np.asarray(state ^ np.asarray(word, np.uint64)) + _GOLDEN
            z = (z ^ (z >> np.uint64(30))) * _MIX_1
            z = (z ^ (z >> np.uint64(27))) * _MIX_2
            state = z ^ (z >> np.uint64(31))
    return np.asarray(state)


def permutation(num: int, *key: int) -> Ids:
    """A permutation of ``range(num)`` fixed by ``key``; int64 (num,)."""
    return np.argsort(hash64(*key, np.arange(num, dtype=np.uint64)), kind="stable").astype(np.int64)


@dataclass(frozen=True)
class EpochOrder:
    """One epoch over shards of the given sizes.

    Sample ids count through the shards in index order: shard *s* holds the ids from ``sum(sizes[:s])`` on.
    The epoch's steps differ by at most one sample, so that there is never a tiny last batch.
    """

    shard_sizes: tuple[int, ...]
    seed: int
    epoch: int
    global_batch: int
    window_shards: int = 8
    _starts: Ids = field(init=False, repr=False, compare=False)
    _shards: Ids = field(init=False, repr=False, compare=False)
    _window_ends: Ids = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        sizes = np.asarray(self.shard_sizes, np.int64)
        shards = permutation(len(sizes), self.seed, self.epoch)
        ends = np.cumsum(sizes[shards])
        last = np.minimum(np.arange(0, len(sizes), self.window_shards) + self.window_shards, len(sizes)) - 1
        object.__setattr__(self, "_starts", np.cumsum(sizes) - sizes)
        object.__setattr__(self, "_shards", shards)
        object.__setattr__(self, "_window_ends", ends[last])

    @property
    def num_samples(self) -> int:
        return int(self._window_ends[-1]) if len(self._window_ends) else 0

    @property
    def num_steps(self) -> int:
        return -(-self.num_samples // self.global_batch)

    def bounds(self, step: int) -> tuple[int, int]:
        """First and one-past-last position of a step's global batch."""
        if not 0 <= step < self.num_steps:
            raise IndexError(f"step {step} of an epoch of {self.num_steps}")
        return step * self.num_samples // self.num_steps, (step + 1) * self.num_samples // self.num_steps

    def batch(self, step: int) -> Ids:
        """Sample ids of a step's global batch, in order; int64 (batch,)."""
        return self._ids(*self.bounds(step))

    def part(self, step: int, rank: int, world_size: int) -> Ids:
        """The contiguous part of a step's global batch that ``rank`` trains on; parts differ by at most one."""
        start, stop = self.bounds(step)
        size = stop - start
        return self._ids(start + rank * size // world_size, start + (rank + 1) * size // world_size)

    def _ids(self, start: int, stop: int) -> Ids:
        parts: list[Ids] = []
        window = int(np.searchsorted(self._window_ends, start, side="right"))
        while start < stop:
            window_start = int(self._window_ends[window - 1]) if window else 0
            take = min(stop, int(self._window_ends[window]))
            parts.append(_window(self, window)[start - window_start : take - window_start])
            start, window = take, window + 1
        return np.concatenate(parts) if parts else np.empty(0, np.int64)


@lru_cache(maxsize=4)
def _window(order: EpochOrder, window: int) -> Ids:
    """All sample ids of one window, shuffled."""
    first = window * order.window_shards
    shards = order._shards[first : first + order.window_shards]
    ids = np.concatenate([order._starts[s] + np.arange(order.shard_sizes[s]) for s in shards])
    return ids[permutation(len(ids), order.seed, order.epoch, window + 1)]


def check_batch(num_samples: int, global_batch: int, world_size: int) -> None:
    """Raise ``ValueError`` unless every rank gets a sample in every step."""
    order_steps = -(-num_samples // global_batch) if num_samples else 0
    smallest = num_samples // order_steps if order_steps else 0
    if smallest < world_size:
        raise ValueError(
            f"{num_samples} training samples in global batches of {global_batch} give some step only {smallest} "
            f"for {world_size} workers; lower cluster.workers, raise train.global_batch or pack more data"
        )
