"""The losses of an epoch's steps, kept on the device so that no step waits for the one before."""

import math

import torch
from torch import Tensor

from bts_dist.step import Trainer

_KEYS_SHOWN = 8


class Losses:
    """Adds up losses, and tells the first step whose loss or gradient was not finite."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        progress = trainer.state.progress
        self._sum = torch.tensor(progress.loss_sum, dtype=torch.float64, device=trainer.runtime.device)
        self._unchecked: list[tuple[Tensor, Tensor]] = []
        self._last = (math.nan, math.nan)

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Take a step's loss and its gradient's norm, which are equal on all ranks."""
        self._sum += loss
        self._unchecked.append((loss, norm))

    def total(self) -> float:
        return float(self._sum)

    def check(self) -> tuple[float, float]:
        """The last step's loss and norm, after a look at those of all steps since the last look.

        Raises:
            FloatingPointError: one is not finite.  They are the same on all ranks, so all ranks raise it.
        """
        if not self._unchecked:
            return self._last
        values = torch.stack([torch.stack(pair).float() for pair in self._unchecked]).tolist()
        first = self._trainer.state.progress.step - len(values) + 1
        self._unchecked.clear()
        for step, (loss, norm) in enumerate(values, start=first):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise FloatingPointError(self._described(step, loss, norm))
        self._last = (values[-1][0], values[-1][1])
        return self._last

    def _described(self, step: int, loss: float, norm: float) -> str:
        what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient's norm is {norm}"
        trainer = self._trainer
        order = trainer.order(trainer.state.progress.epoch)
        ids = order.batch(step - 1 - trainer.state.progress.epoch * order.num_steps)
        keys = [trainer.train.reader.index.key[sample] for sample in ids]
        shown = ", ".join(keys[:_KEYS_SHOWN]) + (
            f" and {len(keys) - _KEYS_SHOWN} more" if len(keys) > _KEYS_SHOWN else ""
        )
        return (
            f"the {what} at step {step} (samples {shown}); nothing was saved since. Look at these samples, lower "
            "optim.lr, set optim.grad_clip, or use train.precision=fp32"
        )
