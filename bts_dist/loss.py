"""Binary cross-entropy plus soft Dice over the global batch.

Both are functions of four sums over pixels: of the cross-entropy, of probability × truth, of probability, and
of truth.  Sums add up over ranks and over micro-batches, so the loss of a global batch is one number however it
is divided.  Soft Dice: Milletari, Navab and Ahmadi, "V-Net", 3DV 2016; over the batch as nnU-Net does.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from bts_dist.config import BceDiceLoss

AllReduce = Callable[[Tensor], Tensor]


def pixel_sums(logits_B1HW: Tensor, truth_B1HW: Tensor) -> Tensor:
    """The sums (cross-entropy, probability × truth, probability, truth) over all pixels; float32 (4,)."""
    logits = logits_B1HW.float()
    probability = logits.sigmoid()
    return torch.stack(
        [
            F.binary_cross_entropy_with_logits(logits, truth_B1HW, reduction="sum"),
            (probability * truth_B1HW).sum(),
            probability.sum(),
            truth_B1HW.sum(),
        ]
    )


def level_sums(outputs: Sequence[Tensor], truth_B1HW: Tensor) -> Tensor:
    """``pixel_sums`` of each supervised level; the truth is averaged down to the level's size; (levels, 4)."""
    sums = []
    for logits in outputs:
        scale = truth_B1HW.shape[-1] // logits.shape[-1]
        truth = F.avg_pool2d(truth_B1HW, scale) if scale > 1 else truth_B1HW
        sums.append(pixel_sums(logits, truth))
    return torch.stack(sums)


def loss_of_sums(sums_L4: Tensor, num_pixels: int, config: BceDiceLoss) -> Tensor:
    """The loss of a global batch from its sums; ``num_pixels`` is the finest level's, over all samples.

    Level *i* weighs ``2 ** -i``, normalised to one, as in nnU-Net.
    """
    weights = 0.5 ** torch.arange(len(sums_L4), device=sums_L4.device, dtype=torch.float32)
    entropy, overlap, predicted, truth = sums_L4.unbind(dim=1)
    pixels = num_pixels * 0.25 ** torch.arange(len(sums_L4), device=sums_L4.device, dtype=torch.float32)
    dice = (2 * overlap + config.smooth) / (predicted + truth + config.smooth)
    per_level = config.bce * entropy / pixels + config.dice * (1 - dice)
    return (weights * per_level).sum() / weights.sum()


def global_loss(
    local_L4: Tensor,
    num_pixels: int,
    config: BceDiceLoss,
    all_reduce: AllReduce,
    total_L4: Tensor | None = None,
) -> Tensor:
    """The global batch's loss, whose gradient is this rank's (and this micro-batch's) own share of it.

    The other ranks' part of the sums is a constant here, so shares simply add: gradients must be *summed* over
    ranks and micro-batches, not averaged.  ``total_L4`` is the sum over all of them, where it is known already.
    """
    own = local_L4.detach()
    total = all_reduce(own.clone()) if total_L4 is None else total_L4
    return loss_of_sums(local_L4 + (total - own), num_pixels, config)
