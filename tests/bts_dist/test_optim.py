"""Which weights decay, and the moving average of the weights."""

import pytest
import torch

from bts_dist.config import OptimConfig, UNetConfig
from bts_dist.optim import Ema, make_optimizer, set_lr
from bts_dist.unet import UNet


def net() -> UNet:
    torch.manual_seed(0)
    return UNet(UNetConfig(features=4, depth=2, norm="batch"))


@pytest.mark.parametrize(("kind", "cls"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_every_parameter_is_optimised_once_and_only_kernels_decay(kind: str, cls: type) -> None:
    model = net()
    optimizer = make_optimizer(OptimConfig(kind=kind, lr=0.1, weight_decay=0.2, beta1=0.8), model)
    assert type(optimizer) is cls
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.2 if parameter.ndim > 1 else 0.0), name
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.999)}


def test_the_rate_is_set_for_all_groups() -> None:
    optimizer = make_optimizer(OptimConfig(), net())
    set_lr(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]


def test_the_average_follows_the_warmed_up_decay() -> None:
    model = net()
    ema = Ema(model, decay=0.2)
    wanted = {name: value.clone() for name, value in model.state_dict().items()}
    for update in (1, 2, 3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(update)
        model.down[0].layers[1].running_mean.add_(1)
        model.down[0].layers[1].num_batches_tracked.add_(1)
        ema.update(model)
        decay = min(0.2, (1 + update) / (10 + update))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                wanted[name] = decay * wanted[name] + (1 - decay) * value
    for name, value in wanted.items():
        if value.is_floating_point():
            torch.testing.assert_close(ema.weights[name], value)
    # A count has no average: it is the last one.
    assert int(ema.weights["down.0.layers.1.num_batches_tracked"]) == 3
    assert ema.num_updates == 3


def test_the_average_is_a_copy() -> None:
    model = net()
    ema = Ema(model, decay=0.9)
    before = {name: value.clone() for name, value in ema.weights.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(torch.equal(before[name], value) for name, value in ema.weights.items())
