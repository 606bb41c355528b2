"""The losses of an epoch's steps, kept on the device so that no step waits for the one before."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from bts_dist.checkpoint import TrainState
from bts_dist.step import Trainer

_KEYS_SHOWN = 8
_LEAST_SCALE = 1.0
"""Below it the loss would be scaled down: not the half precision is at fault then, but the gradient."""


class Losses:
    """Adds up losses, and tells the first step whose loss or gradient was not finite.

    A gradient that overflowed because of the loss scale is no fault: its step was skipped, which is counted.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        state = trainer.state
        self._sum = torch.tensor(state.progress.loss_sum, dtype=torch.float64, device=trainer.runtime.device)
        self._unchecked: list[Tensor] = []
        self._one = torch.ones((), device=trainer.runtime.device)
        self._scale = 1.0 if state.scaler is None else state.scaler.get_scale()
        self._last: dict[str, float | int] = {"loss": math.nan, "grad_norm": math.nan}

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Take the loss and the gradient's norm of the step just taken, which are equal on all ranks."""
        scaler = self._trainer.state.scaler
        self._sum += loss
        scale = self._one if scaler is None else scaler.scale(self._one)
        self._unchecked.append(torch.stack([loss, norm, scale]))

    def total(self) -> float:
        return float(self._sum)

    def check(self) -> dict[str, float | int]:
        """The last step's figures, after a look at those of all steps since the last look.

        They are ``loss`` and ``grad_norm``, and in half precision ``loss_scale`` and ``skipped_steps``, which counts
        from the beginning of the run; a skipped step has no ``grad_norm``.

        Raises:
            FloatingPointError: one is not finite, or gradients overflow however small the loss scale.  The figures are
                the same on all ranks, so all ranks raise it.
        """
        if not self._unchecked:
            return self._last
        values = torch.stack(self._unchecked).float().tolist()
        progress = self._trainer.state.progress
        first = progress.step - len(values) + 1
        self._unchecked.clear()
        for step, (loss, norm, scale) in enumerate(values, start=first):
            skipped, self._scale = scale < self._scale, scale
            if not math.isfinite(loss):
                raise FloatingPointError(self._described(step, f"the loss is {loss}"))
            if not (skipped or math.isfinite(norm)):
                raise FloatingPointError(self._described(step, f"the gradient's norm is {norm}"))
            if skipped and scale < _LEAST_SCALE:
                raise FloatingPointError(
                    self._described(step, f"the gradient overflows at a loss scale of {scale}")
                )
            progress.skipped_steps += skipped
            self._last = {"loss": loss} if skipped else {"loss": loss, "grad_norm": norm}
        if self._trainer.state.scaler is not None:
            self._last |= {"loss_scale": self._scale, "skipped_steps": progress.skipped_steps}
        return self._last

    def check_state(self) -> None:
        """As ``check``, with a look at all that would be saved.

        A step with a finite loss and gradient may still carry a weight, or a mean of squared gradients, beyond what
        float32 holds, which no figure tells before the next step.

        Raises:
            FloatingPointError: a number is not finite.  The state is the same on all ranks, so all ranks raise it.
        """
        self.check()
        state, device = self._trainer.state, self._trainer.runtime.device
        finite = {name: tensor.isfinite().all().to(device) for name, tensor in _tensors(state)}
        bad = [
            name
            for name, fine in zip(finite, torch.stack([*finite.values()]).tolist(), strict=True)
            if not fine
        ]
        if bad:
            raise FloatingPointError(
                self._described(state.progress.step, f"{bad[0]} is not finite after the update")
            )

    def _described(self, step: int, what: str) -> str:
        trainer = self._trainer
        order = trainer.order(trainer.state.progress.epoch)
        ids = order.batch(step - 1 - trainer.state.progress.epoch * order.num_steps)
        keys = [trainer.train.reader.index.key[sample] for sample in ids]
        shown = ", ".join(keys[:_KEYS_SHOWN]) + (
            f" and {len(keys) - _KEYS_SHOWN} more" if len(keys) > _KEYS_SHOWN else ""
        )
        advice = ["look at these samples", "lower optim.lr", "set optim.grad_clip"]
        if trainer.config.train.precision != "fp32":
            advice.append("use train.precision=fp32")
        return f"{what} at step {step} (samples {shown}); nothing was saved since: {', or '.join(advice)}"


def _tensors(state: TrainState) -> Iterator[tuple[str, Tensor]]:
    """The state's tensors with names for people."""
    for name, tensor in state.model.state_dict().items():
        yield f"weight {name}", tensor
    for name, tensor in (state.ema.weights if state.ema is not None else {}).items():
        yield f"average of weight {name}", tensor
    parameters = {id(p): name for name, p in state.model.named_parameters()}
    for parameter, moments in state.optimizer.state.items():
        for kind, tensor in moments.items():
            yield f"{kind} of weight {parameters[id(parameter)]}", tensor
