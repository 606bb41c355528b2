"""How long training stands still for a checkpoint, how soon that is complete, and what the steps beside it cost.

    python benchmarks/checkpoint.py      # some minutes; writes benchmarks/results/checkpoint.md

Real training steps on phantom slices; the ways to save take turns.  Before and after each save, steps are timed alone.
"""

import argparse
import hashlib
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from environment import ROOT, describe
from savers import WAYS, Save, ours, state_bytes
from steps import EPOCH_SLICES, make_phantom, make_trainer, seconds, table

from bts_dist.checkpoint import TrainState
from bts_dist.compose import load_config
from bts_dist.config import Config
from bts_dist.runtime import local_runtime
from bts_dist.step import Trainer, train_step
from bts_dist.unet import count_parameters

RESULT = Path(__file__).with_name("results") / "checkpoint.md"
SAVES_PER_EPOCH = (1, 4, 16)
STEPS_ALONE = 2


@dataclass(frozen=True)
class Size:
    name: str
    overrides: tuple[str, ...]
    batch: int
    predicted: dict[str, str] = field(default_factory=dict)
    """Way to save: seconds until training goes on / until the checkpoint is complete, from ``PREDICTION``."""


SIZES = {
    "small": Size(
        "the model of `configs/lgg-cpu.yaml`",
        (),
        16,
        {
            "ours": "0.006 / 0.12",
            "ours, before": "0.01–0.02 / 0.25",
            "ours, waited for": "0.06",
            "`torch.save` and fsync": "0.02",
            "DCP, thread, memory kept": "0.003 / –",
            "DCP, process, memory kept": "0.003 / –",
        },
    ),
    "large": Size(
        "64 to 1,024 channels",
        ("model.features=64", "model.max_features=1024"),
        2,
        {
            "ours": "0.09 / 2",
            "ours, before": "0.2–1 / 4",
            "ours, waited for": "1",
            "`torch.save` and fsync": "0.3",
            "DCP, thread, memory kept": "0.045 / –",
            "DCP, process, memory kept": "0.045 / –",
        },
    ),
}
QUICK = Size("a tiny model", ("model.features=2", "model.depth=2", "data.image_size=32"), 4)

PREDICTION = """\
Written down before this page was first made, after a look at single operations on an idle machine (a copy into memory
that was touched before 13 GB/s, and 5.6 GB/s where channels-last becomes row-major on the way; into fresh memory 0.5 to
2 GB/s; sha256 1.75 GB/s; written and synced 1.7 GB/s):

- **Standing still.** Ours: bytes / 5.6 GB/s, 6 ms and 0.09 s. Before: 10 to 20 ms, and 0.2 to 1 s where the memory of
  the last copy went back to the system. DCP with memory kept, which copies without changing the layout: a half of
  ours. `torch.save`: the bytes written and synced, 0.02 and 0.3 s, and more for a first write.
- **Complete.** Ours: hashed and written, 1 s for 500 MB alone, twice that beside training on the same two cores.
  Before: two writes and one more read, twice ours.
- **Steps beside it.** What the writer takes of two busy cores: half of its CPU time, some 0.3 s for 500 MB.
- **Share of an epoch.** Below 0.1 % with one checkpoint an epoch, below 1 % with sixteen: far from the limit of 5 %."""


@dataclass(frozen=True)
class Figures:
    """What one save cost, in seconds."""

    still: float
    """From the call to the next step's beginning."""
    complete: float
    """From the call until nothing is left to be done."""
    slowed: float
    """By how much the steps begun until then took longer than as many alone."""
    step: float
    """A step alone, near this save."""


def measure(step: Callable[[], object], save: Callable[[], Callable[[], object]]) -> Figures:
    """Take steps, save, and take steps until the save is complete, and some more."""
    alone = [seconds(step) for _ in range(STEPS_ALONE)]
    with ThreadPoolExecutor(1) as watch:
        began = time.perf_counter()
        finish = save()
        still = time.perf_counter() - began

        def ended() -> float:
            finish()
            return time.perf_counter() - began

        complete = watch.submit(ended)
        beside = []
        while not complete.done():
            beside.append(seconds(step))
    alone += [seconds(step) for _ in range(STEPS_ALONE)]
    usual = statistics.median(alone)
    return Figures(still, complete.result(), sum(beside) - len(beside) * usual, usual)


def turns(trainer: Trainer, batch: int, ways: dict[str, Save], repeats: int) -> dict[str, list[Figures]]:
    """Each way's saves, one after another; the first of each is not counted, since it takes its memory."""
    config = trainer.config
    slices = trainer.train.batch(np.arange(batch))

    def step() -> None:
        train_step(trainer, slices, 0, batch)
        trainer.state.progress.step += 1

    found: dict[str, list[Figures]] = {name: [] for name in ways}
    numbers = count(1)
    for repeat in range(repeats + 1):
        first = repeat % len(ways)
        for name in [*ways, *ways][first : first + len(ways)]:
            save = ways[name]
            figures = measure(step, lambda save=save: save(trainer.state, config, next(numbers)))
            sys.stderr.write(f"{name}: {figures}\n")
            if repeat:
                found[name].append(figures)
    return found


def section(
    size: Size, config: Config, state: TrainState, found: dict[str, list[Figures]], limits: str
) -> str:
    step = statistics.median(f.step for figures in found.values() for f in figures)
    epoch = EPOCH_SLICES / size.batch * step
    head = ("save", "stands still, s", "complete after, s", "predicted", "steps beside it slower by, s")
    rows = [
        (
            name,
            _range([f.still for f in figures]),
            _range([f.complete for f in figures]),
            size.predicted.get(name, "–"),
            _range([f.slowed for f in figures]),
        )
        for name, figures in found.items()
    ]
    shares = [
        (
            name,
            *(
                f"{saves * _middle(f.still for f in figures) / epoch:.3%} / "
                f"{saves * _middle(f.still + f.slowed for f in figures) / epoch:.2%}"
                for saves in SAVES_PER_EPOCH
            ),
        )
        for name, figures in found.items()
    ]
    every = [f"{saves} an epoch" for saves in SAVES_PER_EPOCH]
    return f"""\
## {count_parameters(state.model):,} parameters: {size.name}

A state of {state_bytes(state) / 1e6:.0f} MB in {_num_tensors(state)} tensors; steps of {size.batch} slices of \
{config.data.image_size} px take {step:.2f} s, so an epoch of {EPOCH_SLICES:,} slices takes {epoch:.0f} s.

{limits}

{table(head, rows)}

Share of an epoch's time: standing still / that and the slower steps.

{table(("save", *every), shares)}
"""


def limits(num_bytes: int, folder: Path, repeats: int = 5) -> str:
    """What the bytes of a state cost at the least: copied, hashed, written and synced, each alone."""
    source = torch.ones(num_bytes, dtype=torch.uint8)
    there = torch.empty_like(source).copy_(source)
    memory = source.numpy().data

    def write() -> None:
        with (folder / "limit").open("wb") as file:
            file.write(memory)
            file.flush()
            os.fsync(file.fileno())

    took = {
        "copied": lambda: there.copy_(source),
        "hashed (sha256)": lambda: hashlib.sha256(memory).digest(),
        "written and synced": write,
    }
    best = {what: min(seconds(do) for _ in range(repeats)) for what, do in took.items()}
    (folder / "limit").unlink()
    text = ", ".join(f"{what} {s:.3g} s ({num_bytes / s / 1e9:.2g} GB/s)" for what, s in best.items())
    return f"The limit, these bytes once, at best of {repeats}: {text}."


@contextmanager
def group() -> Iterator[None]:
    """A process group of this process alone, which DCP's process asks for."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def run(size: Size, shards: str, repeats: int, scratch: Path, extra: dict[str, str]) -> str:
    """One size's section; ``extra`` names further stores for ours."""
    config = load_config(
        [ROOT / "configs" / "lgg-cpu.yaml"], [*size.overrides, f"data.shards={shards}", "data.cache=none"]
    )
    with ExitStack() as stack:
        ways = {name: stack.enter_context(way(str(scratch / uuid.uuid4().hex))) for name, way in WAYS.items()}
        for name, where in extra.items():
            ways[name] = stack.enter_context(ours(f"{where}/{uuid.uuid4().hex}"))
        trainer = make_trainer(config, local_runtime())
        found = turns(trainer, size.batch, ways, repeats)
    trainer.train.close()
    trainer.val.close()
    # Only now, after steps, has the optimizer its moments.
    return section(size, config, trainer.state, found, limits(state_bytes(trainer.state), scratch))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scratch", type=Path, help="a folder on the disk to save to; default: the system's")
    parser.add_argument("--s3", action="store_true", help="ours on S3 as well, on a server on this machine")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to prove that it runs")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.scratch)))
        extra = {"ours, on S3": stack.enter_context(_bucket(scratch))} if options.s3 else {}
        stack.enter_context(group())
        shards = make_phantom(scratch / "phantom", 32 if options.quick else 128)
        sizes = [QUICK] if options.quick else [SIZES[name] for name in options.sizes]
        sections = [run(size, shards, options.repeats, scratch, extra) for size in sizes]
    page = report(sections, options.repeats)
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(page)
    sys.stdout.write(page)


def report(sections: Sequence[str], repeats: int) -> str:
    return f"""\
# What a checkpoint costs the training

{describe(("torch", "safetensors"))}
- Load average at the end: {os.getloadavg()[1]:.1f}; {torch.get_num_threads()} threads in a step

Medians of {repeats} saves of each kind, with the least and the most, in one process of real steps; the ways to save
take turns. Model, moving average and both moments of AdamW are saved. Ours is complete when the sha256 of each file
is on the store after the files, and older checkpoints are gone; the others have no hashes. "Before" is ours until this
page was made. Slower steps: those begun before the checkpoint was complete, less as many of the steps around the save.

{chr(10).join(sections)}
## Prediction

{PREDICTION}
"""


@contextmanager
def _bucket(folder: Path) -> Iterator[str]:
    from contenders.contract import s3_client
    from loader_data import s3_server

    with s3_server(folder):
        name = f"bts-checkpoint-{uuid.uuid4().hex[:12]}"
        s3_client().create_bucket(Bucket=name)
        yield f"s3://{name}"


def _middle(values: Any) -> float:
    return statistics.median(values)


def _range(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f}–{max(values):.3f})"


def _num_tensors(state: TrainState) -> int:
    return 2 * len(state.model.state_dict()) + sum(len(values) for values in state.optimizer.state.values())


if __name__ == "__main__":
    main()
