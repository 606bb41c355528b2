"""An optimizer step with the same bits for any number of ranks.

Floating-point sums depend on their order, and in a usual step that order follows from how the batch is divided.  Here
every sample is passed through the network alone, its loss sums and its gradient are taken alone, and both are
added up in the order of the global batch.  The price is no batching; and that the gradients' sum goes from rank to
rank, each adding its own samples', and from the last one back to all.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from bts_dist.augment import augment
from bts_dist.data import Batch
from bts_dist.loss import global_loss, level_sums, loss_of_sums
from bts_dist.predict import autocast
from bts_dist.runtime import all_reduce
from bts_dist.step import Trainer, apply_gradient, scaled
from shards.order import hash64


def exact_step(trainer: Trainer, batch: Batch, epoch: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """As ``step.train_step``."""
    cfg, runtime, state, account = trainer.config, trainer.runtime, trainer.state, trainer.account
    parts = [rank * batch_size // runtime.world_size for rank in range(runtime.world_size + 1)]
    first = parts[runtime.rank]
    with account.doing("augment"):
        samples = _samples(trainer, batch, epoch)
    num_pixels = batch_size * samples[0][1].shape[-1] * samples[0][1].shape[-2]

    # Who sets a micro-batch has no memory for the activations of more, and pays with a second forward pass.
    keep = cfg.train.micro_batch is None or len(samples) <= cfg.train.micro_batch
    own = []
    with account.doing("compute"):
        for position, sample in enumerate(samples, start=first):
            sums = _sums(trainer, *sample, position)
            own.append(sums if keep else sums.detach())
    by_position = torch.zeros(batch_size, *own[0].shape, device=runtime.device)
    by_position[first : first + len(own)] = torch.stack(own).detach()
    # Every entry is one rank's and nought elsewhere, so this sum is exact in any order.
    total = trainer.all_reduce(by_position).sum(dim=0)

    parameters = [p for p in state.model.parameters() if p.requires_grad]

    def gradients() -> Iterator[Tensor]:
        for position, (sample, sums) in enumerate(zip(samples, own, strict=True), start=first):
            with account.doing("compute"):
                graph = sums if sums.requires_grad else _sums(trainer, *sample, position)
                loss = global_loss(graph, num_pixels, cfg.loss, all_reduce, total)
                shares = torch.autograd.grad(scaled(state, loss), parameters)
                share = torch.cat([g.reshape(-1) for g in shares])
            yield share

    gradient = torch.zeros(sum(p.numel() for p in parameters), device=runtime.device)
    _add_in_order(gradient, gradients(), trainer)
    with account.doing("optimizer"):
        for parameter, values in zip(
            parameters, torch.split(gradient, [p.numel() for p in parameters]), strict=True
        ):
            parameter.grad = values.view_as(parameter)
        norm = apply_gradient(state, cfg.optim.grad_clip)
    return loss_of_sums(total, num_pixels, cfg.loss), norm


def _add_in_order(gradient: Tensor, own: Iterator[Tensor], trainer: Trainer) -> None:
    """Add the gradients of all ranks' samples to ``gradient``, in the order of the ranks; the result is on all."""
    runtime, account = trainer.runtime, trainer.account
    if runtime.rank > 0:
        own = iter(list(own))  # before waiting for the sum so far, so that all ranks work at the same time
        with account.doing("exchange"):
            dist.recv(gradient, runtime.rank - 1)
    for share in own:
        gradient += share
    with account.doing("exchange"):
        if runtime.rank + 1 < runtime.world_size:
            dist.send(gradient, runtime.rank + 1)
        if runtime.world_size > 1:
            dist.broadcast(gradient, runtime.world_size - 1)


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
