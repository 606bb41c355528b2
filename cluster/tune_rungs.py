"""Successive halving without waiting: which trials go on at each rung.

A trial that reaches a rung goes on if it is among the best ``1 / reduction`` of those that have reached it so far
(the stopping variant of ASHA, Li et al., MLSys 2020).  ``hyperband`` divides the trials over brackets, each of which
begins to stop one rung later than the one before (asynchronous Hyperband, in the same paper): the bet against
settings that start slowly.  Trial 0, the config as it stands, is never stopped, so that the best is compared with it
at full length.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from bts_dist.config import TuneConfig

Scheduler = Literal["fifo", "asha", "hyperband"]


def rungs(config: TuneConfig, bracket: int = 0) -> list[int]:
    """The epochs after which trials of a bracket may be stopped, ascending; the last epoch is none."""
    if config.scheduler == "fifo":
        return []
    found, epoch = [], config.grace_epochs * config.reduction**bracket
    while epoch < config.epochs:
        found.append(epoch)
        epoch *= config.reduction
    return found


def num_brackets(config: TuneConfig) -> int:
    """One for ASHA; for Hyperband one for each rung, and one whose trials are never stopped."""
    return 1 + len(rungs(config)) if config.scheduler == "hyperband" else 1


def bracket_of(config: TuneConfig, number: int) -> int:
    """The bracket of a trial.

    Bracket ``s`` of ``n`` gets a share in proportion to ``reduction ** (n - 1 - s) / (n - s)``, since each of its
    trials costs more, and the trials follow one another as evenly as that allows.
    """
    count = num_brackets(config)
    shares = [config.reduction ** (count - 1 - s) / (count - s) for s in range(count)]
    total, given = sum(shares), [0] * count
    bracket = 0
    for trial in range(number + 1):
        # The one that lags furthest behind its share.
        bracket = max(range(count), key=lambda s: (shares[s] / total * (trial + 1) - given[s], -s))
        given[bracket] += 1
    return bracket


@dataclass
class Rungs:
    """The scores at each rung of each bracket, and what follows from them."""

    config: TuneConfig
    reached: dict[tuple[int, int], dict[int, float]] = field(default_factory=dict)
    """(bracket, epoch) to the scores of the trials that got there, by their numbers."""

    def record(self, number: int, epoch: int, score: float) -> None:
        """Note what a trial scored after an epoch; again, when a resumed one comes by once more."""
        bracket = bracket_of(self.config, number)
        if epoch in rungs(self.config, bracket):
            self.reached.setdefault((bracket, epoch), {})[number] = score

    def goes_on(self, number: int, epoch: int) -> bool:
        """Whether a trial that was recorded after an epoch may train on."""
        here = self.reached.get((bracket_of(self.config, number), epoch), {})
        if number == 0 or number not in here:
            return True
        return rank(here, number) < keep(len(here), self.config.reduction)


def rank(scores: Mapping[int, float], number: int) -> int:
    """How many trials are better; of equals the earlier one is."""
    own = _sortable(scores[number]), -number
    return sum((_sortable(score), -other) > own for other, score in scores.items())


def keep(count: int, reduction: int) -> int:
    """How many of ``count`` trials at a rung go on: the first does, since it is alone there."""
    return max(1, count // reduction)


def replay(config: TuneConfig, scores: Mapping[int, Sequence[float]]) -> Rungs:
    """The rungs after all trials' scores by epoch."""
    result = Rungs(config)
    for number, values in scores.items():
        for epoch, score in enumerate(values, start=1):
            result.record(number, epoch, score)
    return result


def _sortable(score: float) -> float:
    return -math.inf if math.isnan(score) else score
