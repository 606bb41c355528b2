"""The loss against its formula, and its one value and gradient however the batch is divided."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from bts_dist.config import BceDiceLoss
from bts_dist.loss import global_loss, level_sums, loss_of_sums, pixel_sums

CONFIG = BceDiceLoss(bce=0.7, dice=1.3, smooth=0.5)
SIDE = 16


def sample(num: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    image_BCHW = torch.randn(num, 3, SIDE, SIDE, generator=generator)
    truth_B1HW = (torch.rand(num, 1, SIDE, SIDE, generator=generator) < 0.2).float()
    return image_BCHW, truth_B1HW


def network() -> torch.nn.Conv2d:
    torch.manual_seed(0)
    return torch.nn.Conv2d(3, 1, 3, padding=1)


def outputs(model: torch.nn.Module, image_BCHW: Tensor) -> list[Tensor]:
    """Three levels of supervision."""
    finest = model(image_BCHW)
    return [finest, F.avg_pool2d(finest, 2), F.max_pool2d(finest, 4)]


def direct(logits: list[Tensor], truth_B1HW: Tensor, config: BceDiceLoss) -> Tensor:
    """The formula, term by term."""
    total, weights = torch.zeros(()), 0.0
    for level, own in enumerate(logits):
        truth = F.avg_pool2d(truth_B1HW, 2**level)
        p = 1 / (1 + torch.exp(-own))
        bce = -(truth * p.log() + (1 - truth) * (1 - p).log()).mean()
        dice = (2 * (p * truth).sum() + config.smooth) / (p.sum() + truth.sum() + config.smooth)
        total = total + (config.bce * bce + config.dice * (1 - dice)) / 2**level
        weights += 1 / 2**level
    return total / weights


def gradient(model: torch.nn.Conv2d, loss: Callable[[], Tensor]) -> tuple[float, Tensor]:
    model.zero_grad()
    value = loss()
    value.backward()
    assert model.weight.grad is not None
    return float(value.detach()), model.weight.grad.clone()


def whole(model: torch.nn.Conv2d) -> tuple[float, Tensor]:
    image, truth = sample()
    return gradient(
        model,
        lambda: global_loss(
            level_sums(outputs(model, image), truth), len(image) * SIDE**2, CONFIG, lambda sums: sums
        ),
    )


def test_the_loss_and_its_gradient_are_the_formulas() -> None:
    model = network()
    image, truth = sample()
    value, slope = whole(model)
    wanted, wanted_slope = gradient(model, lambda: direct(outputs(model, image), truth, CONFIG))
    assert value == pytest.approx(wanted, rel=1e-5)
    torch.testing.assert_close(slope, wanted_slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cuts", [[3, 3], [1, 5], [2, 2, 2], [1, 1, 1, 1, 1, 1]])
def test_shares_of_ranks_or_micro_batches_add_up_to_the_whole(cuts: list[int]) -> None:
    model = network()
    value, slope = whole(model)
    parts = list(zip(*(tensor.split(cuts) for tensor in sample()), strict=True))
    with torch.no_grad():
        total = torch.stack([level_sums(outputs(model, x), y) for x, y in parts]).sum(dim=0)
    shares = []
    num_pixels = 6 * SIDE**2

    def as_rank(x: Tensor, y: Tensor) -> Tensor:
        """A rank learns the others' sums through its all-reduce."""
        return global_loss(level_sums(outputs(model, x), y), num_pixels, CONFIG, lambda _: total)

    def as_micro_batch(x: Tensor, y: Tensor) -> Tensor:
        """A micro-batch knows them from a first pass."""
        return global_loss(level_sums(outputs(model, x), y), num_pixels, CONFIG, pytest.fail, total)

    for part in parts:
        rank, micro = (gradient(model, partial(loss, *part)) for loss in (as_rank, as_micro_batch))
        assert rank[0] == micro[0] == pytest.approx(value, rel=1e-6)
        torch.testing.assert_close(rank[1], micro[1], rtol=0, atol=0)
        shares.append(rank[1])
    torch.testing.assert_close(torch.stack(shares).sum(dim=0), slope, rtol=1e-4, atol=1e-6)


def test_the_all_reduce_may_work_in_place() -> None:
    local = torch.ones(1, 4, requires_grad=True)
    loss = global_loss(local, 8, CONFIG, lambda sums: sums.mul_(2)).detach()
    assert float(loss) == pytest.approx(float(loss_of_sums(torch.full((1, 4), 2.0), 8, CONFIG)))
    assert local.tolist() == [[1.0] * 4]


def test_levels_weigh_half_of_the_one_before() -> None:
    entropy = BceDiceLoss(bce=1, dice=0)
    sums = torch.zeros(3, 4)
    losses = []
    for level in range(3):
        sums.zero_()
        sums[level, 0] = 1024 / 4**level  # one per pixel of the level
        losses.append(float(loss_of_sums(sums, 1024, entropy)))
    assert losses == pytest.approx([4 / 7, 2 / 7, 1 / 7])


def test_sums_are_of_all_pixels_and_in_float32() -> None:
    logits = torch.zeros(2, 1, 4, 4, dtype=torch.bfloat16)
    truth = torch.zeros(2, 1, 4, 4)
    truth[0, 0, 0, :3] = 1
    sums = pixel_sums(logits, truth)
    assert sums.dtype == torch.float32
    assert sums.tolist() == pytest.approx([32 * 0.6931472, 1.5, 16.0, 3.0])


def test_a_coarse_level_is_told_the_share_of_tumour_in_its_pixels() -> None:
    _, truth = sample(1)
    sums = level_sums([torch.zeros(1, 1, SIDE, SIDE), torch.zeros(1, 1, SIDE // 4, SIDE // 4)], truth)
    assert float(sums[1, 3]) == pytest.approx(float(sums[0, 3]) / 16)


def test_an_empty_truth_and_prediction_cost_nothing() -> None:
    image, truth = torch.full((1, 1, 8, 8), -40.0), torch.zeros(1, 1, 8, 8)
    loss = loss_of_sums(level_sums([image], truth), 64, BceDiceLoss())
    assert float(loss) == pytest.approx(0, abs=1e-6)
