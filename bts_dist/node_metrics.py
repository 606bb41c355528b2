"""How busy the nodes of a training are: processors, memory and GPUs, in per cent.

W&B looks only at the node that it runs on, rank 0's.  Here every rank looks at its own GPU and the first of each node
at the node, and what they saw goes with each epoch's metrics.  Nodes are numbered in the order of their ranks; what
they are called is nobody's business.
"""

import math
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import NamedTuple, Self

import torch

from bts_dist.runtime import Runtime, all_reduce

EVERY_S = 5.0
"""Seconds between two looks."""


class Load(NamedTuple):
    """Per cent of what there is; NaN where it is not known."""

    cpu: float
    """Time of all processors that was not idle."""
    memory: float
    gpu: float
    """Time in which the GPU did something, of the driver's last sampling period."""
    gpu_memory: float


class LoadReader:
    """Reads the load off ``/proc`` (proc(5)) and the CUDA device; of processors, since it was last asked."""

    def __init__(self, device: torch.device, proc: Path = Path("/proc")) -> None:
        self._device, self._proc = device, proc
        self._times = self._read_times()

    def __call__(self) -> Load:
        before, self._times = self._times, self._read_times()
        total, idle = (now - then for now, then in zip(self._times, before, strict=True))
        return Load(_percent(total - idle, total), self._memory(), *self._gpu())

    def _read_times(self) -> tuple[int, int]:
        """All time of all processors, and the idle part, in clock ticks."""
        user, nice, system, idle, iowait, irq, softirq, steal = map(
            int, (self._proc / "stat").read_text().split(maxsplit=9)[1:9]
        )
        return user + nice + system + idle + iowait + irq + softirq + steal, idle + iowait

    def _memory(self) -> float:
        lines = (line.split() for line in (self._proc / "meminfo").read_text().splitlines())
        kib = {line[0]: int(line[1]) for line in lines}
        return _percent(kib["MemTotal:"] - kib["MemAvailable:"], kib["MemTotal:"])

    def _gpu(self) -> tuple[float, float]:
        """Written to the documentation of CUDA: the tests have no GPU."""
        if self._device.type != "cuda":
            return math.nan, math.nan
        free, total = torch.cuda.mem_get_info(self._device)
        from pynvml import NVMLError

        busy = math.nan
        # The driver's library may be missing, or forbid this, as in a part of a divided GPU.
        with suppress(RuntimeError, NVMLError):
            busy = float(torch.cuda.utilization(self._device))
        return busy, _percent(total - free, total)


class NodeMeter:
    """Looks at the load every so often, in a thread of its own; for use with ``with``."""

    def __init__(self, read: Callable[[], Load], every_s: float = EVERY_S) -> None:
        self._read, self._every_s = read, every_s
        self._seen: list[Load] = []
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._look, name="node-metrics", daemon=True)

    def take(self) -> Load:
        """The mean load since this was last asked."""
        with self._lock:
            seen, self._seen = [*self._seen, self._read()], []
        return Load(*(_mean(values) for values in zip(*seen, strict=True)))

    def _look(self) -> None:
        while not self._stop.wait(self._every_s):
            with self._lock:
                self._seen.append(self._read())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()


def by_node(mine: Load, runtime: Runtime) -> dict[str, float]:
    """``system/node-<number>/<load>`` of all nodes, on every rank; every rank calls it."""
    table = torch.zeros(runtime.world_size, 1 + len(mine), dtype=torch.float64)
    table[runtime.rank] = torch.tensor([float(runtime.local_rank == 0), *mine], dtype=torch.float64)
    return summarise(all_reduce(table.to(runtime.device)).tolist())


def summarise(ranks: Sequence[Sequence[float]]) -> dict[str, float]:
    """The loads of nodes from a row for each rank: whether it is the first of its node, then its load.

    A node's GPUs are those of its ranks, in the mean; the node itself is what its first rank saw.
    """
    found: dict[str, float] = {}
    nodes = list(accumulate(int(first) for first, *_ in ranks))
    for node in sorted(set(nodes)):
        loads = [Load(*load) for at, (_, *load) in zip(nodes, ranks, strict=True) if at == node]
        mean = Load(*(_mean(values) for values in zip(*loads, strict=True)))
        shown = mean._replace(cpu=loads[0].cpu, memory=loads[0].memory)
        found |= {f"system/node-{node - 1}/{name}": value for name, value in shown._asdict().items()}
    return {name: value for name, value in found.items() if not math.isnan(value)}


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return fmean(known) if known else math.nan


def _percent(part: float, whole: float) -> float:
    return 100 * part / whole if whole else math.nan
