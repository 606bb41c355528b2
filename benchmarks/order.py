"""Planning an epoch of 10^9 samples for 1,024 ranks: seconds and memory of one rank, to any position.

    python benchmarks/order.py      # some minutes; writes benchmarks/results/order.md

Each figure is from processes of its own, so that a peak of memory is the case's alone.  Two shuffles that everybody
knows stand beside ours, measured at a smaller size where 10^9 would not fit, and scaled by the number of samples.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import environment
import numpy as np
from numpy.typing import NDArray

from shards.order import EpochOrder

RESULT = Path(__file__).with_name("results") / "order.md"

NUM_SAMPLES = 10**9
WORLD_SIZE = 1024
PART = 16
"""Samples of a rank in a step."""
FOLLOWING_STEPS = 200
AVX_512 = "X86_V4 AVX512_ICL AVX512_SPR"

PREDICTION = """\
Written down before this page was first made, from the bytes that are touched and after a look at single operations on
a busy machine:

- **Ours, memory.** A shard's size takes 4 bytes, its hash 8 until the hashes are sorted, its number in the order 4:
  16 bytes a shard; and some 40 bytes for each sample of a window of 8 shards.
- **Ours, time.** Some 20 passes over a hash within the cache (10 ns), a sort of 64-bit numbers (40 ns with AVX-512,
  100 ns without), sizes looked up in random order (10 ns): 60 ns a shard, and as much a sample of one window. The next
  epoch costs the same again.
- **numpy.** 8 bytes a sample. A swap of Fisher and Yates misses the cache: 20 ns or more.
- **torch.** A sample takes 8 bytes in the permutation, and in the list 8 for the pointer and 32 for the integer
  behind it; 100 ns.
"""

COLUMNS = (
    "Order",
    "put in order",
    "to any position, s",
    "of CPU time, s",
    "predicted",
    "next epoch, s",
    "a following step, µs",
    "memory / traced, MB",
    "predicted",
)

Plan = Callable[[int], Sequence[int] | NDArray[np.int64]]
"""A rank's samples by step of one epoch."""


@dataclass(frozen=True)
class Case:
    name: str
    planned: int
    """Samples that are really put in order."""
    plan: Callable[[int, int, int, int], Plan]
    """From (samples, seed, epoch, rank)."""
    predicted: tuple[str, str]
    """Seconds to any position and MB, as expected for ``NUM_SAMPLES`` before measuring."""
    repeats: int = 7
    without: str = ""
    """Instructions that numpy is not to use."""


@dataclass(frozen=True)
class Figures:
    """What one process measured."""

    position_s: float
    """From nothing to a rank's samples of some step of some epoch.  ``cpu_s`` is the processor's part of it."""
    cpu_s: float
    next_epoch_s: float
    """From there to the first step of the next epoch."""
    step_s: float
    """Another of the steps that follow, on average."""
    growth_mb: float
    """Peak of the resident memory until the position was reached, less what was resident before."""
    traced_mb: float
    """Peak of what numpy and Python asked for, by tracemalloc; 0 where it was off, for it slows Python down."""


def ours(samples_per_shard: int, num_samples: int, seed: int, epoch: int, rank: int) -> Plan:
    num_shards, rest = divmod(num_samples, samples_per_shard)
    sizes = np.full(num_shards + (rest > 0), samples_per_shard, np.int32)
    if rest:
        sizes[-1] = rest
    order = EpochOrder(sizes, seed, epoch, PART * WORLD_SIZE)
    return lambda step: order.part(step, rank, WORLD_SIZE)


def numpy_permutation(num_samples: int, seed: int, epoch: int, rank: int) -> Plan:
    order = np.random.default_rng((seed, epoch)).permutation(num_samples)
    return lambda step: order[(step * WORLD_SIZE + rank) * PART :][:PART]


def torch_sampler(num_samples: int, seed: int, epoch: int, rank: int) -> Plan:
    from torch.utils.data import Dataset, DistributedSampler

    class Samples(Dataset[int]):
        def __len__(self) -> int:
            return num_samples

    sampler: DistributedSampler[int] = DistributedSampler(Samples(), WORLD_SIZE, rank, seed=seed)
    sampler.set_epoch(epoch)
    order = list(sampler)
    return lambda step: order[step * PART :][:PART]


CASES = (
    Case("ours, 100,000 shards of 10,000", NUM_SAMPLES, partial(ours, 10_000), ("0.01", "5")),
    Case("ours, 976,563 shards of 1,024", NUM_SAMPLES, partial(ours, 1024), ("0.06", "16")),
    Case("ours, 3,906,250 shards of 256", NUM_SAMPLES, partial(ours, 256), ("0.24", "63")),
    Case("the same, numpy without AVX-512", NUM_SAMPLES, partial(ours, 256), ("–", "–"), without=AVX_512),
    Case(
        "`numpy.random.default_rng(seed).permutation(n)`",
        10**8,
        numpy_permutation,
        ("20", "8,000"),
        repeats=3,
    ),
    Case("`torch.utils.data.DistributedSampler`", 10**7, torch_sampler, ("100", "48,000"), repeats=3),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", nargs=3, metavar=("CASE", "REPEAT", "TRACED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        case, repeat, traced = map(int, options.measure)
        json.dump(asdict(measure(CASES[case], repeat, bool(traced))), sys.stdout)
        return
    page = report(_measure_all())
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(page, encoding="utf-8")
    sys.stdout.write(page)


def measure(case: Case, repeat: int, traced: bool) -> Figures:
    draw = random.Random(repeat)
    seed, epoch, rank = draw.randrange(2**32), draw.randrange(100), draw.randrange(WORLD_SIZE)
    step = draw.randrange(case.planned // (PART * WORLD_SIZE) - FOLLOWING_STEPS)
    case.plan(PART * WORLD_SIZE, seed, epoch, rank)(0)  # imports what is still to be imported
    before = _resident_mb("VmRSS")
    if traced:
        tracemalloc.start()

    started, cpu_started = time.perf_counter(), time.process_time()
    plan = case.plan(case.planned, seed, epoch, rank)
    samples = plan(step)
    position_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    peak, traced_mb = _resident_mb("VmHWM"), tracemalloc.get_traced_memory()[1] / 1e6
    assert len({int(sample) for sample in samples}) == PART

    started = time.perf_counter()
    for following in range(step + 1, step + FOLLOWING_STEPS + 1):
        plan(following)
    step_s = (time.perf_counter() - started) / FOLLOWING_STEPS

    started = time.perf_counter()
    case.plan(case.planned, seed, epoch + 1, rank)(0)
    next_epoch_s = time.perf_counter() - started
    return Figures(position_s, cpu_s, next_epoch_s, step_s, peak - before, traced_mb)


def report(measured: list[tuple[list[Figures], Figures]]) -> str:
    """The results page, from each case's timed processes and the traced one."""
    rows = [_row(case, *figures) for case, figures in zip(CASES, measured, strict=True)]
    return f"""\
# Planning an epoch of 10^9 samples for 1,024 ranks

{environment.describe(("numpy", "torch"))}

One rank, from nothing but the sizes of the shards to the {PART} samples that it trains on in a random step of a random
epoch, of global batches of {PART * WORLD_SIZE:,}; windows of 8 shards. Medians of 7 processes (3 of the last two rows)
that took turns, with the least and the most. Memory is what a process grew by at its peak; traced, what numpy and
Python asked for. Load average at the end: {os.getloadavg()[1]:.1f}; other work on the machine lengthens the times.

{_cells(COLUMNS)}
{_cells(["---"] * len(COLUMNS))}
{chr(10).join(rows)}

≈: measured at the smaller number of samples and multiplied. Memory grows just so; time a little faster, as the cache
is hit less. Neither of the two can begin at a position without the order of the whole epoch. Neither knows shards:
samples that follow one another lie in different ones. tracemalloc does not see what torch allocates.

Most of our time goes into sorting the hashes. numpy's sort for AVX-512 is slow on some processors (Zen 4), and there is
no choosing another but with `NPY_DISABLE_CPU_FEATURES`, as the fourth row does.

## Prediction

{PREDICTION}"""


def _row(case: Case, timed: list[Figures], traced: Figures) -> str:
    scale = NUM_SAMPLES / case.planned
    about = "≈ " if scale > 1 else ""
    position = [f.position_s * scale for f in timed]
    return _cells(
        [
            case.name,
            f"10^{len(str(case.planned)) - 1}",
            f"{about}{statistics.median(position):.3g} ({min(position):.3g}–{max(position):.3g})",
            f"{about}{statistics.median(f.cpu_s for f in timed) * scale:.3g}",
            case.predicted[0],
            f"{about}{statistics.median(f.next_epoch_s for f in timed) * scale:.3g}",
            f"{statistics.median(f.step_s for f in timed) * 1e6:.0f}",
            f"{about}{max(f.growth_mb for f in timed) * scale:,.0f} / {traced.traced_mb * scale:,.0f}",
            case.predicted[1],
        ]
    )


def _cells(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _measure_all() -> list[tuple[list[Figures], Figures]]:
    """Each case's timed processes, taking turns with the other cases', and a traced one."""
    timed: list[list[Figures]] = [[] for _ in CASES]
    for repeat in range(max(case.repeats for case in CASES)):
        for number, case in enumerate(CASES):
            if repeat < case.repeats:
                timed[number].append(_measured(number, repeat, 0))
    return [(figures, _measured(number, 0, 1)) for number, figures in enumerate(timed)]


def _measured(case: int, repeat: int, traced: int) -> Figures:
    command = [sys.executable, __file__, "--measure", str(case), str(repeat), str(traced)]
    environ = os.environ | {"NPY_DISABLE_CPU_FEATURES": CASES[case].without}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environ)
    return Figures(**json.loads(done.stdout))


def _resident_mb(field: str) -> float:
    """``VmRSS``: resident memory of this process now; ``VmHWM``: its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024 / 1e6
    raise LookupError(field)


if __name__ == "__main__":
    main()
