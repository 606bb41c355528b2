"""The optimizer and the weights' moving average."""

import torch
from torch import Tensor, nn

from bts_dist.config import OptimConfig


def make_optimizer(config: OptimConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba, ICLR 2015) or AdamW (Loshchilov and Hutter, ICLR 2019).

    Biases and normalisation weights do not decay.
    """
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    kind = torch.optim.Adam if config.kind == "adam" else torch.optim.AdamW
    return kind(groups, lr=config.lr, betas=(config.beta1, config.beta2))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


class Ema:
    """Exponential moving average of a model's parameters and buffers.

    The decay warms up as ``(1 + n) / (10 + n)`` so that the first, random weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.weights: dict[str, Tensor] = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        state = model.state_dict()
        averaged = [k for k, v in state.items() if v.is_floating_point()]
        torch._foreach_lerp_([self.weights[k] for k in averaged], [state[k] for k in averaged], 1 - decay)
        for name in state.keys() - set(averaged):
            self.weights[name].copy_(state[name])
