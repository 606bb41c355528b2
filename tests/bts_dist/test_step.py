"""One optimizer step: micro-batches, dropout, running statistics and the order of samples."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.amp import GradScaler

from bts_dist import step as module
from bts_dist.checkpoint import Progress, TrainState
from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.data import SampleSource
from bts_dist.exact import exact_step
from bts_dist.optim import Ema, make_optimizer
from bts_dist.runtime import LocalRuntime
from bts_dist.step import Trainer, train_step
from bts_dist.unet import make_unet
from shards.reader import PackedData


def make_trainer(config: Config, runtime: LocalRuntime) -> Trainer:
    torch.manual_seed(0)
    model = make_unet(config.model, runtime.device)
    ema = Ema(model, 0.5) if config.optim.ema is not None else None
    scaler = GradScaler(runtime.device.type) if config.train.precision == "fp16" else None
    state = TrainState(model, make_optimizer(config.optim, model), ema, Progress(), scaler)
    data = PackedData(config.data.shards)
    train, val = (SampleSource(data.training(split), config.data) for split in ("train", "val"))
    return Trainer(config, runtime, model, state, train, val, attempt=1)


def one_step(config: Config, runtime: LocalRuntime) -> tuple[Trainer, float, float]:
    trainer = make_trainer(config, runtime)
    trainer.network.train()
    loss, norm = train_step(trainer, trainer.train.batch(np.arange(4)), 0, 4)
    return trainer, float(loss), float(norm)


def test_micro_batches_see_the_same_dropout_in_both_passes(
    config: Config, runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[Tensor] = []
    level_sums = module.level_sums

    def recorded(outputs: list[Tensor], truth: Tensor) -> Tensor:
        sums = level_sums(outputs, truth)
        passes.append(sums.detach().clone())
        return sums

    monkeypatch.setattr(module, "level_sums", recorded)
    one_step(with_overrides(config, {"model.dropout": 0.5, "train.micro_batch": 2}), runtime)
    first, second = passes[:2], passes[2:]
    assert len(second) == 2
    assert torch.equal(torch.stack(first), torch.stack(second))
    assert not torch.equal(first[0], first[1])


def test_dropout_follows_from_the_position_alone(config: Config, runtime: LocalRuntime) -> None:
    dropping = with_overrides(config, {"model.dropout": 0.5})
    _, first, _ = one_step(dropping, runtime)
    torch.manual_seed(99)
    assert one_step(dropping, runtime)[1] == first
    later = make_trainer(dropping, runtime)
    later.state.progress.step = 1
    later.network.train()
    assert float(train_step(later, later.train.batch(np.arange(4)), 0, 4)[0]) != first


@pytest.mark.parametrize(("micro_batch", "num_passes"), [(None, 1), (2, 2)])
def test_running_statistics_move_once_for_each_micro_batch(
    config: Config, runtime: LocalRuntime, micro_batch: int | None, num_passes: int
) -> None:
    settings = {"model.norm": "batch", "train.micro_batch": micro_batch}
    trainer, _, _ = one_step(with_overrides(config, settings), runtime)
    counts = [
        int(b) for name, b in trainer.state.model.named_buffers() if name.endswith("num_batches_tracked")
    ]
    assert set(counts) == {num_passes}


def test_gradients_are_clipped_and_their_whole_norm_is_told(config: Config, runtime: LocalRuntime) -> None:
    free, _, norm = one_step(config, runtime)
    clipped, _, same_norm = one_step(with_overrides(config, {"optim.grad_clip": norm / 10}), runtime)
    assert same_norm == norm

    def length(trainer: Trainer) -> float:
        grads = [p.grad for p in trainer.state.model.parameters() if p.grad is not None]
        return float(torch.sqrt(sum((g.square().sum() for g in grads), torch.zeros(()))))

    assert length(free) == pytest.approx(norm, rel=1e-4)
    assert length(clipped) == pytest.approx(norm / 10, rel=1e-3)


def test_the_average_is_what_is_evaluated(config: Config, runtime: LocalRuntime) -> None:
    trainer, _, _ = one_step(config, runtime)
    assert trainer.state.ema is not None
    evaluated = trainer.evaluated_model()
    assert not evaluated.training
    for name, value in evaluated.state_dict().items():
        assert torch.equal(value, trainer.state.ema.weights[name])
    plain, _, _ = one_step(with_overrides(config, {"optim.ema": None}), runtime)
    for name, value in plain.evaluated_model().state_dict().items():
        assert torch.equal(value, plain.state.model.state_dict()[name])


@pytest.mark.parametrize(
    ("batch_size", "world_size", "micro_batch", "num"),
    [(8, 1, None, 1), (8, 1, 8, 1), (8, 1, 3, 3), (9, 2, 4, 2), (8, 2, 4, 1), (5, 4, 1, 1), (9, 2, 1, 4)],
)
def test_every_rank_cuts_its_part_into_as_many_micro_batches(
    batch_size: int, world_size: int, micro_batch: int | None, num: int
) -> None:
    assert module.num_micro_batches(batch_size, world_size, micro_batch) == num
    for rank in range(world_size):
        part = (rank + 1) * batch_size // world_size - rank * batch_size // world_size
        assert all(len(chunk) for chunk in torch.zeros(part).tensor_split(num)), "no micro-batch is empty"


def test_the_order_is_the_configs(config: Config, runtime: LocalRuntime, packed: Path) -> None:
    trainer = make_trainer(config, runtime)
    order = trainer.order(3)
    assert (order.seed, order.epoch, order.global_batch, order.window_shards) == (0, 3, 4, 2)
    assert sum(order.shard_sizes) == len(trainer.train.reader.index) == order.num_samples


HALF = {"train.precision": "fp16", "optim.grad_clip": 1.0}


def copied(trainer: Trainer) -> dict[str, Tensor | int]:
    """Everything that an optimizer step changes."""
    state = trainer.state
    assert state.ema is not None
    moments = {
        f"{number} {kind}": value
        for number, values in state.optimizer.state_dict()["state"].items()
        for kind, value in values.items()
    }
    tensors = {**state.model.state_dict(), **{f"ema {k}": v for k, v in state.ema.weights.items()}, **moments}
    return {**{k: v.clone() for k, v in tensors.items()}, "updates": state.ema.num_updates}


@pytest.mark.parametrize("step", [train_step, exact_step], ids=["usual", "exact"])
@pytest.mark.parametrize("micro_batch", [None, 1])
def test_a_step_whose_gradient_overflows_changes_the_loss_scale_alone(
    config: Config, runtime: LocalRuntime, step: Any, micro_batch: int | None
) -> None:
    trainer = make_trainer(with_overrides(config, {**HALF, "train.micro_batch": micro_batch}), runtime)
    trainer.network.train()
    scaler, batch = trainer.state.scaler, trainer.train.batch(np.arange(4))
    assert scaler is not None
    _, norm = step(trainer, batch, 0, 4)
    assert norm.isfinite()
    before = copied(trainer)
    weight = trainer.state.model.get_parameter("down.0.layers.0.weight")
    overflow = weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([1]), torch.inf))
    loss, norm = step(trainer, batch, 0, 4)
    assert loss.isfinite()
    assert not norm.isfinite()
    after = copied(trainer)
    assert before.keys() == after.keys()
    assert all(torch.equal(torch.as_tensor(before[k]), torch.as_tensor(after[k])) for k in before)
    assert scaler.get_scale() == 2.0**15
    overflow.remove()
    _, norm = step(trainer, batch, 0, 4)
    assert norm.isfinite()
    changed = copied(trainer)
    assert changed["updates"] == 2
    for name in ("heads.0.weight", "ema heads.0.weight", "0 exp_avg"):
        assert not torch.equal(torch.as_tensor(after[name]), torch.as_tensor(changed[name]))


def test_the_loss_scale_does_not_show_in_the_gradient(config: Config, runtime: LocalRuntime) -> None:
    _, loss, norm = one_step(config, runtime)
    for settings in ({}, {"train.micro_batch": 2}):
        _, half_loss, half_norm = one_step(
            with_overrides(config, {"train.precision": "fp16", **settings}), runtime
        )
        assert half_loss == pytest.approx(loss, rel=1e-2)
        assert half_loss != loss
        assert half_norm == pytest.approx(norm, rel=2e-2)
