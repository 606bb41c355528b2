"""Learning-rate schedules as pure functions of the position in training: the factor on ``optim.lr``.

Only ``plateau`` needs more than the position, namely the validation scores so far; it too is a pure function.
"""

import math
from collections.abc import Sequence

from bts_dist.config import (
    ConstantSchedule,
    CosineSchedule,
    OneCycleSchedule,
    PlateauSchedule,
    PolynomialSchedule,
    ScheduleConfig,
    StepSchedule,
)


def lr_factor(config: ScheduleConfig, epoch: float, num_epochs: int, scores: Sequence[float] = ()) -> float:
    """Factor on the peak learning rate at ``epoch`` (fractional: 1.5 is half-way through the second epoch).

    ``scores`` are the validation scores of the finished epochs, higher being better; only ``plateau`` reads them.
    """
    match config:
        case ConstantSchedule():
            return 1.0
        case StepSchedule():
            # The small shift keeps 2.9999999 from counting as the epoch before.
            return config.factor ** math.floor(epoch / config.every_epochs + 1e-9)
        case CosineSchedule():
            rising = _warmup(epoch, config.warmup_epochs)
            share = _share(epoch, config.warmup_epochs, num_epochs)
            return rising * _cosine(1.0, config.final, share)
        case OneCycleSchedule():
            peak = config.warmup * num_epochs
            if epoch < peak:
                return _cosine(config.start, 1.0, epoch / peak)
            return _cosine(1.0, config.final, _share(epoch, peak, num_epochs))
        case PolynomialSchedule():
            share = _share(epoch, config.warmup_epochs, num_epochs)
            return float(_warmup(epoch, config.warmup_epochs) * (1 - share) ** config.power)
        case PlateauSchedule():
            return max(config.floor, config.factor ** _plateaus(scores, config.patience))


def _warmup(epoch: float, length: float) -> float:
    # Starting at a hundredth rather than at nought, so that the first step moves.
    return 1.0 if epoch >= length else max(0.01, epoch / length)


def _share(epoch: float, start: float, end: float) -> float:
    return min(1.0, max(0.0, (epoch - start) / (end - start))) if end > start else 1.0


def _cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


def _plateaus(scores: Sequence[float], patience: int) -> int:
    """How often more than ``patience`` epochs in a row passed without a better score."""
    drops, waited, best = 0, 0, -math.inf
    for score in scores:
        waited = 0 if score > best else waited + 1
        best = max(best, score)
        if waited > patience:
            drops, waited = drops + 1, 0
    return drops
