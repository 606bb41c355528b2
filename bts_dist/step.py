"""One optimizer step on a global batch, and the things that stay the same from step to step."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from bts_dist.account import Account
from bts_dist.augment import augment
from bts_dist.checkpoint import TrainState, checkpoint_name
from bts_dist.config import Config
from bts_dist.data import Batch, SampleSource
from bts_dist.loss import global_loss, level_sums
from bts_dist.predict import autocast
from bts_dist.runtime import Runtime, all_reduce
from bts_dist.schedule import lr_factor
from bts_dist.unet import make_unet
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
    attempt: int
    """Number of this start of the workers."""
    account: Account = field(default_factory=Account)
    """Where this rank's time goes."""

    @property
    def checkpoint_name(self) -> str:
        """What the state is saved as now."""
        return checkpoint_name(self.state.progress.step, self.attempt)

    def order(self, epoch: int) -> EpochOrder:
        cfg = self.config
        sizes = self.train.reader.index.shard_sizes
        return EpochOrder(sizes, cfg.train.seed, epoch, cfg.train.global_batch, cfg.data.window_shards)

    def evaluated_model(self) -> nn.Module:
        """The weights that are validated and scored: the moving average where there is one."""
        model = make_unet(self.config.model, self.runtime.device)
        ema = self.state.ema
        model.load_state_dict(ema.weights if ema is not None else self.state.model.state_dict())
        return model.eval()

    def lr(self, epoch: float) -> float:
        """Learning rate at a fractional epoch."""
        cfg = self.config
        return cfg.optim.lr * lr_factor(cfg.schedule, epoch, cfg.train.epochs, self.state.progress.val_dice)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place, within a step."""
        with self.account.doing("exchange"):
            return all_reduce(tensor)


def train_step(trainer: Trainer, batch: Batch, epoch: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """One optimizer step on this rank's part of a global batch of ``batch_size`` samples.

    Returns the global batch's loss and the gradient's norm, float32 scalars equal on every rank.
    """
    cfg, runtime, state = trainer.config, trainer.runtime, trainer.state
    with trainer.account.doing("augment"):
        image, truth = batch.to(runtime.device)
        image, truth = augment(image, truth, batch.ids, seed=cfg.train.seed, epoch=epoch, config=cfg.augment)
        if cfg.train.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
    num_pixels = batch_size * truth.shape[-1] * truth.shape[-2]
    num_chunks = num_micro_batches(batch_size, runtime.world_size, cfg.train.micro_batch)
    chunks = list(zip(image.tensor_split(num_chunks), truth.tensor_split(num_chunks), strict=True))

    # One forward pass finds the global sums; with micro-batches the gradients then need a second one.
    total = None if len(chunks) == 1 else trainer.all_reduce(_sums_without_gradient(trainer, chunks))
    state.optimizer.zero_grad(set_to_none=True)
    loss = image.new_zeros(())
    for number, (x, y) in enumerate(chunks):
        with trainer.account.doing("compute"), _synchronise(trainer.network, number == len(chunks) - 1):
            sums = _sums(trainer, trainer.network, x, y, number)
            loss = global_loss(sums, num_pixels, cfg.loss, trainer.all_reduce, total)
            # Shares of the gradient add up over ranks; DistributedDataParallel takes their mean.
            torch.autograd.backward(scaled(state, loss * runtime.world_size))
    _average_statistics(trainer)
    with trainer.account.doing("optimizer"):
        norm = apply_gradient(state, cfg.optim.grad_clip)
    return loss.detach(), norm


def scaled(state: TrainState, loss: Tensor) -> Tensor:
    """The loss to take the gradient of."""
    return loss if state.scaler is None else state.scaler.scale(loss)


def apply_gradient(state: TrainState, clip: float | None) -> Tensor:
    """Clip the gradient, step and average the weights; the gradient's norm before clipping, without the loss scale.

    In half precision a gradient that overflowed changes nothing but the loss scale.  Gradients are equal on all
    ranks, and so is what becomes of them.
    """
    if state.scaler is not None:
        state.scaler.unscale_(state.optimizer)
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), clip or float("inf"))
    if state.scaler is None:
        state.optimizer.step()
    else:
        skipped = not norm.isfinite()
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if skipped:
            return norm
    if state.ema is not None:
        state.ema.update(state.model)
    return norm


@torch.no_grad()
def _sums_without_gradient(trainer: Trainer, chunks: list[tuple[Tensor, Tensor]]) -> Tensor:
    # On copies of the buffers: the pass with gradients is the one that moves the running statistics.
    buffers = {name: buffer.clone() for name, buffer in trainer.state.model.named_buffers()}

    def network(x_BCHW: Tensor) -> Any:
        return functional_call(trainer.state.model, buffers, (x_BCHW,))

    with trainer.account.doing("compute"):
        return torch.stack([_sums(trainer, network, x, y, n) for n, (x, y) in enumerate(chunks)]).sum(dim=0)


def _sums(
    trainer: Trainer, network: Callable[[Tensor], Any], x_BCHW: Tensor, truth_B1HW: Tensor, number: int
) -> Tensor:
    """Loss sums of micro-batch ``number``; the same however often it is passed through the network."""
    cfg, runtime = trainer.config, trainer.runtime
    # Dropout's numbers follow from the position alone, so there is no generator state to save.
    key = hash64(cfg.train.seed, trainer.state.progress.step, runtime.rank, number)
    torch.manual_seed(int(key) & (2**63 - 1))
    with autocast(runtime.device, cfg.train.precision):
        outputs = network(x_BCHW)
    return level_sums(outputs, truth_B1HW)


@torch.no_grad()
def _average_statistics(trainer: Trainer) -> None:
    """Give every rank the mean of all ranks' running statistics.

    Done in each step, so that all ranks hold one state after it, whenever it is saved.  Synchronised normalisation
    has one state by itself.
    """
    world_size = trainer.runtime.world_size
    norms = [module for module in trainer.state.model.modules() if isinstance(module, nn.BatchNorm2d)]
    statistics = [s for norm in norms for s in (norm.running_mean, norm.running_var) if s is not None]
    if world_size == 1 or not statistics:
        return
    means = trainer.all_reduce(torch.cat(statistics)).div_(world_size)
    for statistic, mean in zip(statistics, torch.split(means, [len(s) for s in statistics]), strict=True):
        statistic.copy_(mean)


def num_micro_batches(batch_size: int, world_size: int, micro_batch: int | None) -> int:
    """Into how many micro-batches each rank cuts its part: as many on every rank, since ranks meet in each.

    Parts differ by a sample.  Where the smallest has too few samples for so many, a micro-batch has one more.
    """
    smallest, largest = batch_size // world_size, -(-batch_size // world_size)
    return 1 if micro_batch is None else min(smallest, -(-largest // micro_batch))


def _synchronise(network: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
    """Exchange gradients after the last micro-batch only."""
    if last or not isinstance(network, DistributedDataParallel):
        return contextlib.nullcontext()
    return network.no_sync()
