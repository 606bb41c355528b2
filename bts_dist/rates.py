"""How many slices a second a config trains on and predicts: what a run recorded, or what is measured here and now."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import nn

from bts_dist.checkpoint import Progress, TrainState
from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.data import Batch, SampleSource
from bts_dist.devices import device_name
from bts_dist.flops import DTYPES, count_flops, measure_peak
from bts_dist.optim import Ema, make_optimizer
from bts_dist.predict import autocast
from bts_dist.runtime import LocalRuntime, pick_device
from bts_dist.step import Trainer, train_step
from bts_dist.unet import make_unet
from shards.cpus import is_busy, load_average
from shards.reader import PackedData

_SECONDS = 3.0
"""How long each rate is measured for, after a first step that also compiles and allocates."""
_STEPS = 3
"""How many steps each rate is measured in, at least."""
_BATCH = 32
"""Most slices in a measured step: a whole global batch may be more than one machine's memory holds."""


@dataclass(frozen=True)
class Rates:
    """Speeds of the devices that worked together, which may be one."""

    train: float
    """Slices a second, augmentation and everything else of a step included."""
    predict: float | None
    """Forward passes a second in validation, choosing and scoring; None where nobody knows.  A slice takes one for each
    checkpoint, and as many again where it is mirrored."""
    flops: int
    """Operations to train on a slice."""
    peak: float
    """Operations a second of the devices that were measured."""
    device: str
    """What was measured, as ``devices.device_name``; empty where that was not recorded."""
    devices: int
    """How many of it worked together."""
    origin: str
    """Where the rates come from, for people."""
    scaled: bool = False
    """Whether they are those of another model or size, scaled by operations a slice."""
    doubt: str = ""
    """Why they may be wrong, for people; empty where nothing is known of it."""

    @property
    def utilisation(self) -> float:
        """Share of the peak that training reaches."""
        return self.train * self.flops / self.peak


def recorded_rates(
    rows: Sequence[Mapping[str, Any]], passes: int | None, flops: int, run: str
) -> Rates | None:
    """The rates in the rows of epochs of a run's ``metrics.jsonl``; None when it has none.

    The median epoch counts, of those on the devices that the run had last; the first one, which fills caches, only
    where it is alone.  A run whose slices took other than ``flops`` operations is scaled by their ratio, and ``origin``
    says so.  ``passes`` are the forward passes of one of its validations, None where that is not known.
    """
    if not rows:
        return None
    last = rows[-1]
    epochs = [row for row in rows[1:] or rows if _devices(row) == _devices(last)]
    train = median(row["samples_per_s"] for row in epochs)
    ratio = round(last["flops_per_s"] / last["samples_per_s"]) / flops
    predict = None if passes is None else passes / median(row["time/val_s"] for row in epochs) * ratio
    scaled = abs(ratio - 1) > 1e-6
    device, number = _devices(last)
    origin = f"recorded by {run}, {len(epochs)} epochs" + (f" on {number} × {device}" if device else "")
    if scaled:
        origin += f", scaled by operations a slice (× {ratio:.2f}), not measured"
    return Rates(train * ratio, predict, flops, last["peak_flops_per_s"], device, number, origin, scaled)


def _devices(row: Mapping[str, Any]) -> tuple[str, int]:
    """What an epoch ran on, and how many of it; no name in records made before it was kept."""
    return row.get("device", ""), row.get("devices", 1)


def measured_rates(config: Config, data: PackedData) -> Rates:
    """Real steps and predictions of the config's model and size on random slices, in this process on one device.

    Reading and decoding, exchange between workers and the metrics of validation are no part of it: a run is slower.
    """
    busy, load = is_busy(), load_average()  # before the steps that load it too
    device = pick_device(0, config.cluster.gpus_per_worker)
    source = SampleSource(data.training("train"), with_overrides(config, {"data.cache": "none"}).data)
    try:
        torch.manual_seed(config.train.seed)
        model: nn.Module = make_unet(config.model, device, channels_last=config.train.channels_last).train()
        ema = Ema(model, config.optim.ema) if config.optim.ema is not None else None
        scaler = torch.amp.GradScaler(device.type) if config.train.precision == "fp16" else None
        state = TrainState(model, make_optimizer(config.optim, model), ema, Progress(), scaler)
        trainer = Trainer(config, LocalRuntime(0, 1, 0, device), model, state, source, source, 1)
        batch = _random_batch(
            config, source, min(_BATCH, -(-config.train.global_batch // config.cluster.most))
        )
        image, _ = batch.to(device)
        train = _rate(lambda: train_step(trainer, batch, 0, len(batch)), len(batch), device)
        predict = _rate(lambda: _predict(config, model.eval(), image), len(batch), device)
    finally:
        source.close()
    peak = measure_peak(device, DTYPES[config.train.precision], torch.get_num_threads())
    name = device_name(device)
    size = f"{len(batch)} random slices of {source.sides[0]} × {source.sides[1]}"
    origin = f"measured here and now by one process on {name}, in steps of {size}"
    doubt = f"others use this machine (load {load:.1f}): these rates are too low" if busy else ""
    return Rates(train, predict, count_flops(config.model, source.sides), peak, name, 1, origin, doubt=doubt)


def _random_batch(config: Config, source: SampleSource, size: int) -> Batch:
    height, width = source.sides
    index = source.reader.index
    ids = torch.arange(size).numpy() % len(index)
    generator = torch.Generator().manual_seed(config.train.seed)
    image = torch.randint(256, (size, height, width, 3), generator=generator, dtype=torch.uint8)
    mask = torch.randint(2, (size, height, width), generator=generator, dtype=torch.uint8)
    return Batch(ids, image, mask, torch.from_numpy(index.mean[ids]), torch.from_numpy(index.std[ids]))


@torch.inference_mode()
def _predict(config: Config, model: nn.Module, image_BCHW: torch.Tensor) -> None:
    """One forward pass of a batch; the result is of no use."""
    with autocast(image_BCHW.device, config.train.precision):
        model(image_BCHW)


def _rate(work: Callable[[], object], slices: int, device: torch.device) -> float:
    """Slices a second of work that is repeated for some seconds, and at least three times.

    The median step counts: others that use the machine slow some of them down many times.
    """
    work()
    _wait(device)
    ends = [time.perf_counter()]
    while len(ends) <= _STEPS or ends[-1] - ends[0] < _SECONDS:
        work()
        _wait(device)
        ends.append(time.perf_counter())
    return slices / median(end - began for began, end in pairwise(ends))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
