"""Searchers: what the next trial is, as a function of its number and of what is known of the others.

Nothing is remembered between two proposals but the trials themselves, so a search that was killed proposes what it
would have proposed.
"""

import hashlib
import itertools
import json
import math
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from bts_dist.compose import with_overrides
from bts_dist.config import Config
from cluster.tune_ledger import Trial
from cluster.tune_space import (
    Params,
    Place,
    Real,
    Space,
    Steps,
    Values,
    check_free,
    check_values,
    flat,
    own_values,
    parse_space,
)

SHOWN = 256
"""Draws that are looked at before a search starts."""


@dataclass(frozen=True)
class Searcher:
    """Proposes trial after trial: the config as it stands, the points given, and then by ``tune.search``."""

    config: Config
    space: Space
    first: Sequence[Values]

    def propose(self, number: int, trials: Sequence[Trial]) -> Values | None:
        """The values of a trial, or None when there is nothing left to try.

        ``trials`` are those proposed before it.  Only ``optuna`` looks at their results.
        """
        if number < len(self.first):
            return self.first[number]
        match self.config.tune.search:
            case "random":
                return self._random(number)
            case "grid":
                return next(itertools.islice(self._grid(), number - len(self.first), None), None)
            case "optuna":
                return self._learned(number, trials)

    def examples(self) -> list[Values]:
        """What comes first, and proposals of the search; of Optuna, which learns, what it may draw."""
        tune = self.config.tune
        if tune.search == "grid":
            return [*self.first, *itertools.islice(self.space.grid(), max(SHOWN, tune.trials))]
        return [*self.first, *map(self._random, range(len(self.first), max(SHOWN, tune.trials)))]

    def _random(self, number: int) -> Values:
        return self.space.draw(_Random(random.Random(seed_of(self.config.tune.seed, number))))

    def _grid(self) -> Iterator[Values]:
        """The grid's points but those that come first anyway, which may name more keys for the same config."""
        first = [with_overrides(self.config, values) for values in self.first]
        return (p for p in self.space.grid() if with_overrides(self.config, p) not in first)

    def _learned(self, number: int, trials: Sequence[Trial]) -> Values:
        """By Optuna's tree-structured Parzen estimator, from all trials so far."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=seed_of(self.config.tune.seed, number),
                n_startup_trials=min(10, 1 + self.config.tune.trials // 3),
                multivariate=True,
                group=True,  # conditional keys are learnt among the trials that have them
                constant_liar=True,  # running trials keep others away
            )
        cost = self.config.tune.cost
        dice, price = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
        study = optuna.create_study(directions=[dice] if cost is None else [dice, price], sampler=sampler)
        places = self.space.places()
        for trial in trials:
            params = self.space.locate(trial.values)
            study.add_trial(
                _told(trial, params, places) if cost is None else _priced(trial, params, places, cost)
            )
        return self.space.draw(_Optuna(study.ask()))


def make_searcher(config: Config) -> Searcher:
    """The searcher of ``tune``, its space, points and, as far as they are known, proposals checked.

    Raises:
        InputError: a key or value is impossible; it is named.
    """
    space = parse_space(config)
    first: list[Values] = [own_values(config, space)]
    for index, point in enumerate(config.tune.points):
        where = f"tune.points[{index}]"
        values = {k: v for key, value in point.items() for k, v in flat(key, value).items()}
        check_free(where, values)
        check_values(config, where, values)
        first.append({**_unconditional(first[0], values), **values})
    searcher = Searcher(config, space, first)
    for values in searcher.examples()[len(first) :]:
        check_values(config, f"tune.space: {json.dumps(values)}", values)
    return searcher


def seed_of(seed: int, number: int) -> int:
    """A seed for each trial of a search."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big")


def _unconditional(own: Values, point: Values) -> Values:
    """The config's own values beside a point's, without the fields of another variant than the point's."""
    changed = {
        key.rpartition(".")[0] for key in point if key.endswith(".kind") and own.get(key) != point[key]
    }
    return {key: value for key, value in own.items() if key.rpartition(".")[0] not in changed}


@dataclass(frozen=True)
class _Random:
    generator: random.Random

    def real(self, name: str, low: float, high: float, *, log: bool) -> float:
        return _real(self.generator.random(), low, high, log=log)

    def position(self, name: str, count: int, *, ordered: bool) -> int:
        return self.generator.randrange(count)


def _real(share: float, low: float, high: float, *, log: bool) -> float:
    """The number at a share of the way from ``low`` to ``high``."""
    if log:
        return min(high, max(low, math.exp(math.log(low) + share * (math.log(high) - math.log(low)))))
    return low + share * (high - low)


@dataclass(frozen=True)
class _Optuna:
    trial: optuna.Trial

    def real(self, name: str, low: float, high: float, *, log: bool) -> float:
        return self.trial.suggest_float(name, low, high, log=log)

    def position(self, name: str, count: int, *, ordered: bool) -> int:
        if ordered:
            return self.trial.suggest_int(name, 0, count - 1)
        return int(self.trial.suggest_categorical(name, range(count)))


def distribution(place: Place) -> BaseDistribution:
    """A place of the space as Optuna calls it; positions stand for the values of lists."""
    match place:
        case Real(low, high, log):
            return FloatDistribution(low, high, log=log)
        case Steps(values):
            return IntDistribution(0, len(values) - 1)
    return CategoricalDistribution(range(len(place.options)))


_STATES = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}


def _priced(
    trial: Trial, params: Params, places: Mapping[str, Place], cost: Literal["flops", "seconds"]
) -> FrozenTrial:
    """A trial as Optuna is told of it where the cost counts, too.

    With two objectives Optuna knows no trials that were stopped: they count by their best epoch so far.
    """
    state, price = _STATES.get(trial.status, TrialState.RUNNING), trial.cost(cost)
    scores = [score for score in trial.scores if math.isfinite(score)]
    values = None
    if state in (TrialState.COMPLETE, TrialState.PRUNED):
        values = [max(scores), price] if scores and price is not None else None
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
    return create_trial(
        state=state,
        values=values,
        params=params,
        distributions={name: distribution(places[name]) for name in params},
    )


def _told(trial: Trial, params: Params, places: Mapping[str, Place]) -> FrozenTrial:
    """A trial as Optuna is told of it: one that was stopped counts by how far it came and what it scored there."""
    state = _STATES.get(trial.status, TrialState.RUNNING)
    scores = {epoch: score for epoch, score in enumerate(trial.scores, start=1) if math.isfinite(score)}
    if state is TrialState.COMPLETE and not scores:
        state = TrialState.FAIL
    return create_trial(
        state=state,
        value=max(scores.values()) if state is TrialState.COMPLETE else None,
        params=params,
        distributions={name: distribution(places[name]) for name in params},
        intermediate_values={} if state is TrialState.FAIL else scores,
    )
