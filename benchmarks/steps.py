"""Real training steps on phantom slices, to be timed."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from bts_dist.checkpoint import Progress, TrainState
from bts_dist.config import Config
from bts_dist.data import SampleSource
from bts_dist.optim import Ema, make_optimizer
from bts_dist.runtime import Runtime
from bts_dist.step import Trainer
from bts_dist.unet import make_unet
from shards.config import HoldoutSplit, PackConfig, PhantomConfig, StoreConfig
from shards.pack import pack, process_map
from shards.phantom import generate
from shards.reader import PackedData
from shards.verify import verify_source

EPOCH_SLICES = 2618
"""Training slices of the real data set of ``configs/lgg-cpu.yaml``."""


def make_trainer(config: Config, runtime: Runtime) -> Trainer:
    """A fresh model, in training mode; the caller closes its data."""
    torch.manual_seed(0)
    model = make_unet(config.model, runtime.device, channels_last=config.train.channels_last)
    assert config.optim.ema is not None
    state = TrainState(model, make_optimizer(config.optim, model), Ema(model, config.optim.ema), Progress())
    data = PackedData(config.data.shards)
    train, val = (SampleSource(data.training(split), config.data) for split in ("train", "val"))
    model.train()
    return Trainer(config, runtime, model, state, train, val, 1)


def make_phantom(folder: Path, size: int) -> str:
    """Packed phantom slices; the folder of the shards."""
    generate(PhantomConfig(patients=6, size=size, min_slices=8, max_slices=8), folder / "source", workers=1)
    pack(
        verify_source(str(folder / "source"), StoreConfig(), 1),
        str(folder / "shards"),
        source=str(folder / "source"),
        split=HoldoutSplit(train=0.6, val=0.2, test=0.2),
        config=PackConfig(),
        store=StoreConfig(),
        parallel=process_map(1),
    )
    return str(folder / "shards")


def seconds(do: Callable[[], object]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])
