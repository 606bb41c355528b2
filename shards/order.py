"""The order of samples in an epoch, as a pure function of (shard sizes, seed, epoch, global batch).

Nothing here has state or draws from a generator: a position in training is one integer, and any rank of any
world size can ask for any step directly.  Shards are permuted, laid end to end, and shuffled inside windows of
a few shards, so reads stay nearly sequential and jumping to a step costs one window, not one epoch.  What is kept
and computed for an epoch grows with its shards, not its samples: ``benchmarks/results/order.md`` plans 10^9.

The permutations sort by SplitMix64 hashes (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014), so they are the same on every platform and with every numpy version.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Shards = NDArray[np.int32]
Hashes = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_UNMIX_1 = np.uint64(pow(int(_MIX_1), -1, 2**64))
_UNMIX_2 = np.uint64(pow(int(_MIX_2), -1, 2**64))

# Numbers hashed at a time: few enough for intermediate results to stay in the processor's cache.
_BLOCK = 1 << 14
# Shards from one known first id to the next; between them sizes are added up.
_STRIDE = 256
_WINDOWS_KEPT = 4
_NOTHING: Ids = np.empty(0, np.int64)


def hash64(*words: int | Hashes) -> Hashes:
    """SplitMix64 of a sequence of words, each a non-negative int or a uint64 array; arrays broadcast."""
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for word in words:
            state = _mix(np.asarray(state ^ np.asarray(word, np.uint64)))
    return np.asarray(state)


def _mix(z: Hashes) -> Hashes:
    """SplitMix64's output for each state.  No two states have the same: each line can be undone."""
    z = z + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def _unmix(z: Hashes) -> Hashes:
    """The states whose outputs are given: the lines of ``_mix`` undone from the last to the first."""
    z = (z ^ (z >> np.uint64(31)) ^ (z >> np.uint64(62))) * _UNMIX_2
    z = (z ^ (z >> np.uint64(27)) ^ (z >> np.uint64(54))) * _UNMIX_1
    z = z ^ (z >> np.uint64(30)) ^ (z >> np.uint64(60))
    return z - _GOLDEN


def permutation(num: int, *key: int) -> Ids:
    """``range(num)`` in the order of the hashes ``hash64(*key, i)``; int64 (num,).

    Under one key no two numbers have the same hash, so there are no ties, and a hash tells its number.  The hashes
    can therefore be sorted by themselves and turned back: 8 bytes a number in all, with no array of indices.
    """
    state = hash64(*key)
    numbers = np.arange(num, dtype=np.uint64)
    blocks = [numbers[start : start + _BLOCK] for start in range(0, num, _BLOCK)]
    for block in blocks:
        block[:] = _mix(state ^ block)
    numbers.sort()
    for block in blocks:
        block[:] = state ^ _unmix(block)
    return numbers.view(np.int64)


@dataclass(frozen=True, eq=False)
class _Window:
    """A few shards, shuffled together."""

    start: int
    """Position of the first sample; ``stop`` is the one after the last."""
    stop: int
    num_shards: int
    """Shards that are not empty."""
    shard: Shards
    """The shard of each sample, (stop - start,).  ``ids`` likewise."""
    ids: Ids


@dataclass(frozen=True, eq=False)
class EpochOrder:
    """One epoch over shards of the given sizes.

    Sample ids count through the shards in index order: shard *s* holds the ids from ``sum(sizes[:s])`` on.
    The epoch's steps differ by at most one sample, so that there is never a tiny last batch.
    """

    shard_sizes: Sequence[int] | NDArray[np.int32]
    """Samples in each shard.  An int32 array is used as it is, not copied; it must not change afterwards."""
    seed: int
    epoch: int
    global_batch: int
    window_shards: int = 8
    _sizes: Shards = field(init=False, repr=False)
    _starts: Ids = field(init=False, repr=False)
    """First id of every ``_STRIDE``-th shard."""
    _shards: Shards = field(init=False, repr=False)
    """Shard numbers in the epoch's order."""
    _window_ends: Ids = field(init=False, repr=False)
    """Position after the last sample of each window."""
    _windows: dict[int, _Window] = field(init=False, repr=False, default_factory=dict)
    """The windows last asked for, by number."""

    def __post_init__(self) -> None:
        sizes = np.asarray(self.shard_sizes, np.int32)
        shards = permutation(len(sizes), self.seed, self.epoch).astype(np.int32)
        totals = _sums(sizes, _STRIDE)
        object.__setattr__(self, "_sizes", sizes)
        object.__setattr__(self, "_starts", np.cumsum(totals) - totals)
        object.__setattr__(self, "_shards", shards)
        object.__setattr__(self, "_window_ends", np.cumsum(_sums(sizes[shards], self.window_shards)))

    @property
    def num_samples(self) -> int:
        return int(self._window_ends[-1]) if len(self._window_ends) else 0

    @property
    def num_steps(self) -> int:
        return -(-self.num_samples // self.global_batch)

    def bounds(self, step: int) -> tuple[int, int]:
        """First and one-past-last position of a step's global batch."""
        num_samples, num_steps = self.num_samples, self.num_steps
        if not 0 <= step < num_steps:
            raise IndexError(f"step {step} of an epoch of {num_steps}")
        return step * num_samples // num_steps, (step + 1) * num_samples // num_steps

    def batch(self, step: int) -> Ids:
        """Sample ids of a step's global batch, in order; int64 (batch,)."""
        return self.part(step, 0, 1)

    def part(self, step: int, rank: int, world_size: int) -> Ids:
        """The contiguous part of a step's global batch that ``rank`` trains on; parts differ by at most one."""
        runs = self._runs(*self._part_bounds(step, rank, world_size))
        return np.concatenate([window.ids[places] for window, places in runs] or [_NOTHING])

    def shards_from(self, step: int, rank: int = 0, world_size: int = 1) -> Iterator[int]:
        """Shards in the order in which ``rank`` first needs them from ``step`` to the end of the epoch.

        Each comes once.  They are found as the iterator is drawn on, which remembers one window's shards.
        """
        if not 0 <= step <= self.num_steps:
            raise IndexError(f"step {step} of an epoch of {self.num_steps}")
        return self._first_needed(step, rank, world_size)

    def _first_needed(self, step: int, rank: int, world_size: int) -> Iterator[int]:
        current, seen = -1, set[int]()
        settled = 0  # a position: the samples before it need no shard that has not been seen
        for later in range(step, self.num_steps):
            start, stop = self._part_bounds(later, rank, world_size)
            for window, places in self._runs(max(start, settled), stop):
                if window.start != current:
                    current, seen = window.start, set()
                for shard in dict.fromkeys(window.shard[places].tolist()):
                    if shard not in seen:
                        seen.add(shard)
                        yield shard
                if len(seen) == window.num_shards:
                    settled = window.stop

    def _part_bounds(self, step: int, rank: int, world_size: int) -> tuple[int, int]:
        start, stop = self.bounds(step)
        size = stop - start
        return start + rank * size // world_size, start + (rank + 1) * size // world_size

    def _runs(self, start: int, stop: int) -> Iterator[tuple[_Window, slice]]:
        """The windows that hold the positions from ``start`` to ``stop``, and where in each."""
        if start >= stop:
            return
        number = int(np.searchsorted(self._window_ends, start, side="right"))
        while start < stop:
            window = self._window(number)
            take = min(stop, window.stop)
            yield window, slice(start - window.start, take - window.start)
            start, number = take, number + 1

    def _window(self, number: int) -> _Window:
        window = self._windows.get(number)
        if window is None:
            if len(self._windows) >= _WINDOWS_KEPT:
                self._windows.clear()
            window = self._windows[number] = self._shuffled(number)
        return window

    def _shuffled(self, number: int) -> _Window:
        shards = self._shards[number * self.window_shards : (number + 1) * self.window_shards]
        sizes = self._sizes[shards]
        ids = np.concatenate([self._ids_of(int(shard)) for shard in shards])
        order = permutation(len(ids), self.seed, self.epoch, number + 1)
        stop = int(self._window_ends[number])
        num_shards = int(np.count_nonzero(sizes))
        return _Window(stop - len(ids), stop, num_shards, np.repeat(shards, sizes)[order], ids[order])

    def _ids_of(self, shard: int) -> Ids:
        known = shard // _STRIDE
        first = self._starts[known] + self._sizes[known * _STRIDE : shard].sum(dtype=np.int64)
        return np.arange(first, first + self._sizes[shard], dtype=np.int64)


def _sums(numbers: Shards, every: int) -> Ids:
    """The sum of the first ``every`` numbers, of the next, and so on."""
    whole = len(numbers) // every * every
    sums = numbers[:whole].reshape(-1, every).sum(axis=1, dtype=np.int64)
    return sums if whole == len(numbers) else np.append(sums, numbers[whole:].sum(dtype=np.int64))


def check_batch(num_samples: int, global_batch: int, world_size: int) -> None:
    """Raise ``ValueError`` unless every rank gets a sample in every step."""
    order_steps = -(-num_samples // global_batch) if num_samples else 0
    smallest = num_samples // order_steps if order_steps else 0
    if smallest < world_size:
        raise ValueError(
            f"{num_samples} training samples in global batches of {global_batch} give some step only {smallest} "
            f"for {world_size} workers; lower cluster.workers, raise train.global_batch or pack more data"
        )
