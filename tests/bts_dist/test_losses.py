"""What is told of a step's figures, and what is no error."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.amp import GradScaler

from bts_dist.checkpoint import Progress, TrainState
from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.data import SampleSource
from bts_dist.losses import Losses
from bts_dist.optim import Ema, make_optimizer
from bts_dist.runtime import LocalRuntime
from bts_dist.step import Trainer, train_step
from bts_dist.unet import make_unet
from shards.reader import PackedData


@pytest.fixture
def trainer(config: Config, runtime: LocalRuntime) -> Trainer:
    """After one step in half precision."""
    half = with_overrides(config, {"train.precision": "fp16"})
    torch.manual_seed(0)
    model = make_unet(half.model, runtime.device)
    state = TrainState(
        model,
        make_optimizer(half.optim, model),
        Ema(model, 0.5),
        Progress(),
        GradScaler("cpu", init_scale=4.0),
    )
    data = PackedData(half.data.shards)
    train, val = (SampleSource(data.training(split), half.data) for split in ("train", "val"))
    made = Trainer(half, runtime, model, state, train, val, attempt=1)
    model.train()
    train_step(made, train.batch(np.arange(4)), 0, 4)
    state.progress.step = 1
    return made


def take(trainer: Trainer, losses: Losses, loss: float, norm: float, scale: float) -> None:
    """A step of these figures."""
    assert trainer.state.scaler is not None
    trainer.state.scaler.update(scale)
    trainer.state.progress.step += 1
    losses.add(torch.tensor(loss), torch.tensor(norm))


def test_a_skipped_step_is_counted_and_has_no_norm(trainer: Trainer) -> None:
    losses = Losses(trainer)
    take(trainer, losses, 0.5, math.inf, 2.0)
    assert losses.check() == {"loss": 0.5, "loss_scale": 2.0, "skipped_steps": 1}
    take(trainer, losses, 0.25, math.nan, 1.0)
    take(trainer, losses, 0.25, 3.0, 1.0)
    assert losses.check() == {"loss": 0.25, "grad_norm": 3.0, "loss_scale": 1.0, "skipped_steps": 2}
    take(trainer, losses, 0.25, 2.0, 8.0)
    assert losses.check() == {"loss": 0.25, "grad_norm": 2.0, "loss_scale": 8.0, "skipped_steps": 2}
    assert trainer.state.progress.skipped_steps == 2
    assert losses.total() == 1.25


@pytest.mark.parametrize(
    ("figures", "what"),
    [
        ((math.nan, math.inf, 2.0), "the loss is nan"),
        ((0.5, math.inf, 4.0), "the gradient's norm is inf"),
        ((0.5, math.inf, 0.5), "the gradient overflows at a loss scale of 0.5"),
    ],
)
def test_an_overflow_that_no_scale_mends_is_an_error(
    trainer: Trainer, figures: tuple[float, float, float], what: str
) -> None:
    losses = Losses(trainer)
    take(trainer, losses, 0.5, 1.0, 4.0)
    take(trainer, losses, *figures)
    take(trainer, losses, 0.5, 1.0, 4.0)
    ids = trainer.order(0).batch(2)
    with pytest.raises(FloatingPointError) as caught:
        losses.check()
    keys = ", ".join(trainer.train.reader.index.key[i] for i in ids)
    assert str(caught.value).startswith(f"{what} at step 3 (samples {keys}); nothing was saved since")


def weight(state: TrainState) -> Tensor:
    return state.model.state_dict()["heads.0.weight"]


def average(state: TrainState) -> Tensor:
    assert state.ema is not None
    return state.ema.weights["heads.0.weight"]


def second_moment(state: TrainState) -> Tensor:
    moment: Tensor = state.optimizer.state[state.model.get_parameter("heads.0.weight")]["exp_avg_sq"]
    return moment


@pytest.mark.parametrize(
    ("part", "what"),
    [
        (weight, "weight heads.0.weight"),
        (average, "average of weight heads.0.weight"),
        (second_moment, "exp_avg_sq of weight heads.0.weight"),
    ],
)
def test_a_state_that_is_not_finite_is_an_error_whatever_the_figures(
    trainer: Trainer, part: type, what: str
) -> None:
    losses = Losses(trainer)
    losses.check_state()
    part(trainer.state)[0, 0] = math.inf
    losses.check()
    with pytest.raises(FloatingPointError, match=f"^{what} is not finite after the update at step 1 "):
        losses.check_state()
