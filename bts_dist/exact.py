"""An optimizer step with the same bits for any number of ranks.

Floating-point sums depend on their order, and in a usual step that order follows from how the batch is divided.  Here
every sample is passed through the network alone, its loss sums and its gradient are taken alone, and both are
added up in the order of the global batch on every rank.  The price is one broadcast of a whole gradient for each
sample, and no batching.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bts_dist.augment import augment
from bts_dist.data import Batch
from bts_dist.loss import global_loss, level_sums, loss_of_sums
from bts_dist.predict import autocast
from bts_dist.runtime import all_reduce
from bts_dist.step import Trainer
from shards.order import hash64


def exact_step(trainer: Trainer, batch: Batch, epoch: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """As ``step.train_step``."""
    cfg, runtime, state = trainer.config, trainer.runtime, trainer.state
    parts = [rank * batch_size // runtime.world_size for rank in range(runtime.world_size + 1)]
    first = parts[runtime.rank]
    samples = _samples(trainer, batch, epoch)
    num_pixels = batch_size * samples[0][1].shape[-1] * samples[0][1].shape[-2]

    with torch.no_grad():
        own = [_sums(trainer, *sample, position) for position, sample in enumerate(samples, start=first)]
    by_position = torch.zeros(batch_size, *own[0].shape, device=runtime.device)
    by_position[first : first + len(own)] = torch.stack(own)
    # Every entry is one rank's and nought elsewhere, so this sum is exact in any order.
    total = all_reduce(by_position).sum(dim=0)

    parameters = [p for p in state.model.parameters() if p.requires_grad]
    gradient = torch.zeros(sum(p.numel() for p in parameters), device=runtime.device)
    for owner in range(runtime.world_size):
        for position in range(parts[owner], parts[owner + 1]):
            share = torch.empty_like(gradient)
            if owner == runtime.rank:
                sums = _sums(trainer, *samples[position - first], position)
                loss = global_loss(sums, num_pixels, cfg.loss, all_reduce, total)
                share = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)])
            if runtime.world_size > 1:
                dist.broadcast(share, owner)
            gradient += share
    for parameter, values in zip(
        parameters, torch.split(gradient, [p.numel() for p in parameters]), strict=True
    ):
        parameter.grad = values.view_as(parameter)
    norm = nn.utils.clip_grad_norm_(parameters, cfg.optim.grad_clip or float("inf"))
    state.optimizer.step()
    if state.ema is not None:
        state.ema.update(state.model)
    return loss_of_sums(total, num_pixels, cfg.loss), norm


def _samples(trainer: Trainer, batch: Batch, epoch: int) -> list[tuple[Tensor, Tensor]]:
    """Each sample's augmented image (1, 3, H, W) and truth (1, 1, H, W), made without the others."""
    cfg = trainer.config
    images, truths = batch.to(trainer.runtime.device)
    samples = []
    for row, (image, truth) in enumerate(zip(torch.split(images, 1), torch.split(truths, 1), strict=True)):
        ids = batch.ids[row : row + 1]
        image, truth = augment(image, truth, ids, seed=cfg.train.seed, epoch=epoch, config=cfg.augment)
        if cfg.train.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        samples.append((image, truth))
    return samples


def _sums(trainer: Trainer, image_BCHW: Tensor, truth_B1HW: Tensor, position: int) -> Tensor:
    """Loss sums of the sample at a position in the global batch."""
    cfg = trainer.config
    key = hash64(cfg.train.seed, trainer.state.progress.step, position)
    torch.manual_seed(int(key) & (2**63 - 1))  # for dropout
    with autocast(trainer.runtime.device, cfg.train.precision):
        outputs = trainer.state.model(image_BCHW)
    return level_sums(outputs, truth_B1HW)
