"""One measurement: a loader in processes of its own, from opening the data set to the last batch of each epoch.

Run by ``loader.py`` with a row's name and a setting as JSON; prints a JSON object.  In every timed epoch the samples
are counted; in one more epoch, which is not timed, every pixel goes into a checksum.
"""

import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch
from contenders import ROWS, Row
from contenders.contract import Batch, Pixels, Setting, checksum


@dataclass(frozen=True)
class Measured:
    """What one rank saw; times are of the clock that all processes share."""

    spans: list[tuple[float, float]]
    """Start and end of each epoch; the first starts before the data set is opened."""
    samples: list[int]
    """Of each epoch, the untimed last one too."""
    checksum: int
    memory: int
    """Bytes held by this process and its children in the middle of the last epoch."""


def measure(row: Row, setting: Setting, warm_epochs: int) -> dict[str, Any]:
    """Seconds of the cold epoch and of the warm ones, samples in each, and the checksum of the last."""
    contender = row.load()
    ranks = setting.processes if contender.RANKS else 1
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(ranks)
    pipes = [context.Pipe(duplex=False) for _ in range(1, ranks)]
    others = [
        context.Process(target=_other_rank, args=(row, setting, rank, warm_epochs, barrier, sender))
        for rank, (_, sender) in enumerate(pipes, start=1)
    ]
    for process in others:
        process.start()
    seen = [_measure_rank(row, setting, 0, warm_epochs, barrier), *(receiver.recv() for receiver, _ in pipes)]
    for process in others:
        process.join()
    starts = [min(starts) for starts in zip(*([s for s, _ in m.spans] for m in seen), strict=True)]
    ends = [max(ends) for ends in zip(*([e for _, e in m.spans] for m in seen), strict=True)]
    cold, *warm = (end - start for start, end in zip(starts, ends, strict=True))
    return {
        "cold_s": cold,
        "warm_s": statistics.median(warm),
        "warm_epochs": len(warm),
        "samples": [sum(counts) for counts in zip(*(m.samples for m in seen), strict=True)],
        "memory": seen[0].memory,  # the other ranks are children of the first
        "checksum": f"{sum(m.checksum for m in seen) % 2**64:016x}",
    }


def _other_rank(
    row: Row, setting: Setting, rank: int, warm_epochs: int, barrier: Barrier, sender: Connection
) -> None:
    sender.send(_measure_rank(row, setting, rank, warm_epochs, barrier))


def _measure_rank(row: Row, setting: Setting, rank: int, warm_epochs: int, barrier: Barrier) -> Measured:
    torch.set_num_threads(1)  # as in a DataLoader's workers
    contender = row.load()
    spans: list[tuple[float, float]] = []
    samples: list[int] = []
    barrier.wait()
    start = time.perf_counter()
    with contender.opened(setting, rank) as epoch:
        for number in range(1 + warm_epochs):
            samples.append(sum(len(image) for image, _ in epoch(number)))
            spans.append((start, time.perf_counter()))
            barrier.wait()
            start = time.perf_counter()
        memory: list[int] = []
        pixels = checksum(_samples(epoch(1 + warm_epochs), samples, memory))
    return Measured(spans, samples, int(pixels, 16), memory[0])


def _samples(
    batches: Iterator[Batch], counts: list[int], memory: list[int]
) -> Iterator[tuple[Pixels, Pixels]]:
    """The batches' samples one by one; appends their number, and the memory held when half of them have come."""
    count = 0
    for images, masks in batches:
        if images.dtype != torch.uint8 or masks.dtype != torch.uint8 or images.shape[:3] != masks.shape:
            raise ValueError(f"{images.dtype} {images.shape} with {masks.dtype} {masks.shape} is no batch")
        yield from zip(images.numpy(), masks.numpy(), strict=True)
        count += len(images)
        if not memory and count >= counts[0] // 2:
            memory.append(held_memory(os.getpid()))
    counts.append(count)


def held_memory(pid: int) -> int:
    """Bytes held by a process and all below it; what several of them share is shared out (PSS)."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = [child for thread in threads for child in (thread / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):  # ended since
        return 0
    own = next((int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:")), 0)
    return own + sum(held_memory(int(child)) for child in children)


def main() -> None:
    name, setting, warm_epochs = sys.argv[1], Setting(**json.loads(sys.argv[2])), int(sys.argv[3])
    row = next(row for row in ROWS if row.name == name)
    row.load()  # before the ranks fork, so that they share what is imported
    sys.stdout.write("\n" + json.dumps(measure(row, setting, warm_epochs)) + "\n")


if __name__ == "__main__":
    main()
