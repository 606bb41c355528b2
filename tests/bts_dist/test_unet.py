"""The UNet: shapes, supervised levels, norms and its first guess."""

import pytest
import torch
from torch import nn

from bts_dist.config import UNetConfig
from bts_dist.unet import UNet, count_parameters, make_norm, make_unet

CPU = torch.device("cpu")


@pytest.mark.parametrize(("depth", "levels"), [(2, 1), (3, 1), (4, 2), (5, 3)])
def test_training_gives_a_map_for_each_supervised_level_and_evaluation_the_finest(
    depth: int, levels: int
) -> None:
    model = UNet(UNetConfig(features=2, depth=depth, norm="group"))
    image = torch.zeros(2, 3, 32, 48)
    maps = model(image)
    assert [tuple(m.shape) for m in maps] == [(2, 1, 32 >> i, 48 >> i) for i in range(levels)]
    finest = model.eval()(image)
    torch.testing.assert_close(finest, maps[0])
    plain = UNet(UNetConfig(features=2, depth=depth, deep_supervision=False))
    assert len(plain(image)) == 1


def test_every_parameter_has_a_gradient() -> None:
    model = UNet(UNetConfig(features=2, depth=4, norm="group"))
    sum(m.mean() for m in model(torch.randn(2, 3, 32, 32))).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_widths_double_up_to_their_limit() -> None:
    model = UNet(UNetConfig(features=3, depth=4, max_features=10))
    assert [block.layers[0].out_channels for block in model.down] == [3, 6, 10, 10]


@pytest.mark.parametrize(
    ("kind", "channels", "groups"),
    [("instance", 12, 12), ("group", 12, 6), ("group", 16, 8), ("group", 7, 7)],
)
def test_norms_divide_the_channels(kind: str, channels: int, groups: int) -> None:
    norm = make_norm(kind, channels)
    assert isinstance(norm, nn.GroupNorm)
    assert norm.num_groups == groups
    assert isinstance(make_norm("batch", channels), nn.BatchNorm2d)


def test_dropout_is_there_when_asked_for() -> None:
    def dropouts(share: float) -> list[nn.Module]:
        return [
            m
            for m in UNet(UNetConfig(features=2, depth=2, dropout=share)).modules()
            if isinstance(m, nn.Dropout2d)
        ]

    assert dropouts(0) == []
    assert len(dropouts(0.5)) == 3


def test_the_first_guess_is_that_tumour_is_rare() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        probability = UNet(UNetConfig(features=4, depth=3)).eval()(torch.randn(2, 3, 32, 32)).sigmoid()
    assert 0.005 < float(probability.mean()) < 0.05


def test_layout_changes_no_weight() -> None:
    config = UNetConfig(features=4, depth=2)
    torch.manual_seed(0)
    plain = make_unet(config, CPU, channels_last=False)
    torch.manual_seed(0)
    last = make_unet(config, CPU)
    for (name, a), b in zip(plain.named_parameters(), last.parameters(), strict=True):
        assert torch.equal(a, b), name
    kernel = last.down[0].layers[3].weight
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert not kernel.is_contiguous()
    assert plain.down[0].layers[3].weight.is_contiguous()


def test_parameters_are_counted() -> None:
    assert count_parameters(nn.Conv2d(3, 5, 3)) == 3 * 5 * 9 + 5
