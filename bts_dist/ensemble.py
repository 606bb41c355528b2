"""Several networks as one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """The mean of the logits of several networks that take the same input.

    Logits are averaged rather than probabilities, so that all that follows a network stays as it is for one.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits, (B, 1, H, W); at least float32, so that a mean of half-precision logits loses nothing."""
        return torch.stack([network(x_BCHW).float() for network in self.networks]).mean(dim=0)


def networks_of(network: nn.Module) -> list[nn.Module]:
    """The networks in what ``ensemble`` gave."""
    return list(network.networks) if isinstance(network, Ensemble) else [network]


def num_networks(network: nn.Module) -> int:
    """How many networks there are in what ``ensemble`` gave."""
    return len(networks_of(network))


def ensemble(networks: Sequence[nn.Module]) -> nn.Module:
    """One network as it is, several as an ``Ensemble``."""
    return networks[0] if len(networks) == 1 else Ensemble(networks)
