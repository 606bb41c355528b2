"""One optimizer step on a global batch, and the things that stay the same from step to step."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bts_dist.augment import augment
from bts_dist.checkpoint import TrainState
from bts_dist.config import Config
from bts_dist.data import Batch, SampleSource
from bts_dist.loss import global_loss, level_sums
from bts_dist.predict import autocast
from bts_dist.runtime import Runtime, all_reduce
from bts_dist.schedule import lr_factor
from bts_dist.unet import UNet
from shards.order import EpochOrder, hash64


@dataclass(frozen=True)
class Trainer:
    """What stays the same for a whole training run on one rank."""

    config: Config
    runtime: Runtime
    network: nn.Module
    """The model, wrapped for gradient averaging where there are several ranks."""
    state: TrainState
    train: SampleSource
    val: SampleSource

    def order(self, epoch: int) -> EpochOrder:
        cfg = self.config
        sizes = self.train.reader.index.shard_sizes
        return EpochOrder(sizes, cfg.train.seed, epoch, cfg.train.global_batch, cfg.data.window_shards)

    def evaluated_model(self) -> nn.Module:
        """The weights that are validated and scored: the moving average where there is one."""
        model = UNet(self.config.model).to(self.runtime.device)
        ema = self.state.ema
        model.load_state_dict(ema.weights if ema is not None else self.state.model.state_dict())
        return model.to(memory_format=torch.channels_last).eval()

    def lr(self, epoch: float) -> float:
        """Learning rate at a fractional epoch."""
        cfg = self.config
        return cfg.optim.lr * lr_factor(cfg.schedule, epoch, cfg.train.epochs, self.state.progress.val_dice)


def train_step(trainer: Trainer, batch: Batch, epoch: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """One optimizer step on this rank's part of a global batch of ``batch_size``; its loss and gradient norm."""
    cfg, runtime, state = trainer.config, trainer.runtime, trainer.state
    # Dropout's numbers follow from the position alone, so there is no generator state to save.
    torch.manual_seed(int(hash64(cfg.train.seed, state.progress.step, runtime.rank)) & (2**63 - 1))
    image, truth = batch.to(runtime.device)
    image, truth = augment(image, truth, batch.ids, seed=cfg.train.seed, epoch=epoch, config=cfg.augment)
    if cfg.train.channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    num_pixels = batch_size * truth.shape[-1] * truth.shape[-2]
    chunks = list(_micro_batches(image, truth, cfg.train.micro_batch))

    # One forward pass finds the global sums; with micro-batches the gradients then need a second one.
    total = None if len(chunks) == 1 else all_reduce(_sums_without_gradient(trainer, chunks))
    state.optimizer.zero_grad(set_to_none=True)
    loss = image.new_zeros(())
    for number, (x, y) in enumerate(chunks):
        with _synchronise(trainer.network, number == len(chunks) - 1):
            with autocast(runtime.device, cfg.train.precision):
                outputs = trainer.network(x)
            loss = global_loss(level_sums(outputs, y), num_pixels, cfg.loss, all_reduce, total)
            # Shares of the gradient add up over ranks; DistributedDataParallel takes their mean.
            (loss * runtime.world_size).backward()
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), cfg.optim.grad_clip or float("inf"))
    state.optimizer.step()
    if state.ema is not None:
        state.ema.update(state.model)
    return loss.detach(), norm


@torch.no_grad()
def _sums_without_gradient(trainer: Trainer, chunks: list[tuple[Tensor, Tensor]]) -> Tensor:
    sums = []
    for x, y in chunks:
        with autocast(trainer.runtime.device, trainer.config.train.precision):
            outputs = trainer.state.model(x)
        sums.append(level_sums(outputs, y))
    return torch.stack(sums).sum(dim=0)


def _micro_batches(image: Tensor, truth: Tensor, size: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(image.split(size or len(image)), truth.split(size or len(truth)), strict=True)


def _synchronise(network: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
    """Exchange gradients after the last micro-batch only."""
    if last or not isinstance(network, DistributedDataParallel):
        return contextlib.nullcontext()
    return network.no_sync()
