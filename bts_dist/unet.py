"""A two-dimensional UNet (Ronneberger, Fischer and Brox, MICCAI 2015) for one foreground class.

Two convolutions a level, strided max-pooling down, transposed convolutions up, and, with deep supervision
(Lee et al., AISTATS 2015), one logit map for each of the coarser decoder levels too.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from bts_dist.config import UNetConfig


def make_norm(kind: str, channels: int) -> nn.Module:
    """Normalisation over a channel's pixels in the batch, in the sample, or in a group of up to 8 channels."""
    match kind:
        case "batch":
            return nn.BatchNorm2d(channels)
        case "instance":
            return nn.GroupNorm(channels, channels)
        case _:
            groups = max(g for g in range(1, 9) if channels % g == 0)
            return nn.GroupNorm(groups, channels)


class ConvBlock(nn.Module):
    """Two 3×3 convolutions, each normalised and rectified."""

    def __init__(self, num_in: int, num_out: int, norm: str, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (num_in, num_out):
            layers += [
                nn.Conv2d(channels, num_out, 3, padding=1, bias=False),
                make_norm(norm, num_out),
                nn.LeakyReLU(0.01, inplace=True),
            ]
        if dropout > 0:
            layers.append(nn.Dropout2d(dropout))
        self.layers = nn.Sequential(*layers)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out: Tensor = self.layers(x_BCHW)
        return out


class UNet(nn.Module):
    """Logits of the tumour mask from normalised slices.

    Input: float (B, 3, H, W), H and W multiples of ``2 ** (depth - 1)``.
    Output: in training a list of logit maps (B, 1, H / 2**i, W / 2**i), finest first, one for each supervised
    level; in evaluation the finest alone.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        widths = [min(config.features * 2**i, config.max_features) for i in range(config.depth)]
        ins = [3, *widths[:-1]]
        self.down = nn.ModuleList(
            ConvBlock(i, o, config.norm, config.dropout) for i, o in zip(ins, widths, strict=True)
        )
        self.pool = nn.MaxPool2d(2)
        above = list(pairwise(widths))[::-1]
        self.up = nn.ModuleList(nn.ConvTranspose2d(lower, w, 2, stride=2) for w, lower in above)
        self.merge = nn.ModuleList(ConvBlock(2 * w, w, config.norm, config.dropout) for w, _ in above)
        # nnU-Net leaves the two coarsest levels unsupervised: their maps are too small to mean much.
        supervised = max(1, config.depth - 2) if config.deep_supervision else 1
        heads = [nn.Conv2d(w, 1, 1) for w in widths[:supervised]]
        self.heads = nn.ModuleList(heads)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, a=0.01)
        for head in heads:
            nn.init.normal_(head.weight, std=0.01)
            if head.bias is not None:
                # Tumour is about one pixel in a hundred: start from that prior, not from one in two.
                nn.init.constant_(head.bias, -4.0)

    def forward(self, x_BCHW: Tensor) -> Tensor | list[Tensor]:
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x_BCHW = block(x_BCHW if level == 0 else self.pool(x_BCHW))
            skips.append(x_BCHW)
        x_BCHW = skips.pop()
        levels: list[Tensor] = []
        for up, merge in zip(self.up, self.merge, strict=True):
            x_BCHW = merge(torch.cat([up(x_BCHW), skips.pop()], dim=1))
            levels.append(x_BCHW)
        levels.reverse()
        if not self.training:
            finest: Tensor = self.heads[0](levels[0])
            return finest
        return [head(level) for head, level in zip(self.heads, levels, strict=False)]


def make_unet(config: UNetConfig, device: torch.device, *, channels_last: bool = True) -> UNet:
    """A fresh UNet on ``device``, weights laid out channels-last, as convolutions like them best, when asked to."""
    model = UNet(config).to(device)
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack this form
    return model


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
