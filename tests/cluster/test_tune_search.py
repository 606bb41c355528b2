"""Searchers propose the same trials for the same seed, whatever was killed in between."""

import math
from dataclasses import replace
from typing import Any

import pytest

from bts_dist.compose import with_overrides
from bts_dist.config import Config
from cluster.tune_ledger import Status, Trial
from cluster.tune_search import Searcher, make_searcher
from cluster.tune_space import Values
from shards.errors import InputError

SPACE = {
    "optim.lr": {"loguniform": [1e-4, 1e-1]},
    "optim.ema": {"choice": [None, 0.9, 0.99]},
    "schedule": {"choice": [{"kind": "constant"}, {"kind": "step", "every_epochs": {"randint": [2, 8]}}]},
}


def configured(**settings: Any) -> Config:
    return with_overrides(Config(), {"tune": {"trials": 8, "space": SPACE, **settings}})


def ran(searcher: Searcher, count: int) -> list[Trial]:
    """A search one after another, whose score is best at a learning rate of 0.01."""
    trials: list[Trial] = []
    for number in range(count):
        values = searcher.propose(number, trials)
        assert values is not None
        trials.append(Trial(number, values, "finished", (score(values),)))
    return trials


def score(values: Values) -> float:
    return 1 - abs(math.log10(values["optim.lr"]) + 2) / 2


@pytest.mark.parametrize("search", ["random", "optuna"])
def test_the_same_seed_proposes_the_same_trials(search: str) -> None:
    config = configured(search=search, seed=3)
    trials = ran(make_searcher(config), 14)
    assert ran(make_searcher(config), 14) == trials
    # From the middle on, with another process's searcher.
    assert make_searcher(config).propose(13, trials[:13]) == trials[13].values
    other = ran(make_searcher(configured(search=search, seed=4)), 14)
    assert all(a.values != b.values for a, b in zip(trials[1:], other[1:], strict=True))
    assert len({str(trial.values) for trial in trials}) == 14


@pytest.mark.parametrize("search", ["random", "optuna"])
def test_the_config_comes_first_and_then_the_points(search: str) -> None:
    points = [{"optim.lr": 0.02}, {"schedule": {"every_epochs": 4, "kind": "step"}, "optim.lr": 0.03}]
    searcher = make_searcher(configured(search=search, points=points))
    first, second, third = (searcher.propose(number, []) for number in range(3))
    own = {"schedule.kind": "cosine", "schedule.warmup_epochs": 1.0, "schedule.final": 0.0}
    assert first == {"optim.lr": 0.001, "optim.ema": None, **own}
    assert second == {**first, "optim.lr": 0.02}
    # Settings of another schedule have no place beside the point's.
    assert third == {
        "optim.lr": 0.03,
        "optim.ema": None,
        "schedule.kind": "step",
        "schedule.every_epochs": 4,
    }
    assert with_overrides(searcher.config, third or {}).schedule.kind == "step"


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([{"optim.lr": 0.1}, {"optim.lrr": 0.1}], r"tune.points\[1\]: optim.lrr: unknown key"),
        ([{"optim.lr": -1}], r"tune.points\[0\]: optim.lr: -1 should be"),
        ([{"train.epochs": 1}], r"tune.points\[0\]: train.epochs cannot be searched"),
    ],
)
def test_an_impossible_point_names_itself(points: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_searcher(configured(points=points))


def test_values_that_do_not_go_together_are_found_before_the_search() -> None:
    space = {"model.depth": {"choice": [2, 6]}, "data.image_size": {"choice": [64, 80]}}
    config = with_overrides(Config(), {"data.image_size": 64, "model.depth": 2})
    for search in ("random", "grid", "optuna"):
        with pytest.raises(InputError, match=r"data.image_size is 80; with model.depth 6"):
            make_searcher(with_overrides(config, {"tune": {"trials": 4, "search": search, "space": space}}))


def test_a_grid_ends_and_tries_nothing_twice() -> None:
    space = {"optim.lr": {"choice": [0.001, 0.01]}, "optim.ema": {"choice": [None, 0.9]}}
    searcher = make_searcher(configured(search="grid", space=space, points=[{"optim.ema": 0.9}]))
    found = [searcher.propose(number, []) for number in range(5)]
    assert found == [
        {"optim.lr": 0.001, "optim.ema": None},
        {"optim.lr": 0.001, "optim.ema": 0.9},
        {"optim.lr": 0.01, "optim.ema": None},
        {"optim.lr": 0.01, "optim.ema": 0.9},
        None,
    ]


def test_a_continuous_range_is_refused_for_a_grid() -> None:
    with pytest.raises(InputError, match=r"optim.lr is a continuous range"):
        make_searcher(configured(search="grid"))


def test_optuna_learns() -> None:
    settings = configured(search="optuna", space={"optim.lr": {"loguniform": [1e-4, 1e-1]}})
    late = ran(make_searcher(settings), 40)[20:]
    random = ran(make_searcher(with_overrides(settings, {"tune.search": "random"})), 40)[20:]
    assert sum(score(dict(t.values)) for t in late) > sum(score(dict(t.values)) for t in random)


@pytest.mark.parametrize("status", ["running", "stopped", "failed"])
def test_optuna_takes_trials_that_are_not_finished(status: Status) -> None:
    searcher = make_searcher(configured(search="optuna"))
    trials = ran(searcher, 12)
    others = [replace(t, status=status) if t.number % 3 == 1 else t for t in trials]
    others[2] = replace(others[2], scores=(float("nan"),))
    values = searcher.propose(12, others)
    assert values is not None
    with_overrides(searcher.config, values)
    assert values != searcher.propose(12, trials)


def test_a_cost_draws_the_search_to_cheaper_trials() -> None:
    space = {"model.features": {"randint": [8, 64]}}

    def mean_features(cost: str | None) -> float:
        """Of the later trials of a search, where width gains a little and its operations grow with the square."""
        config = configured(search="optuna", space=space, cost=cost, trials=40)
        searcher, trials = make_searcher(config), list[Trial]()
        for number in range(40):
            values = searcher.propose(number, trials)
            assert values is not None
            width = values["model.features"]
            status: Status = "stopped" if number % 5 == 4 else "finished"
            trials.append(
                Trial(number, values, status, (0.8 + 0.001 * width,), seconds=width, flops=width**2 * 1000)
            )
        return sum(trial.values["model.features"] for trial in trials[20:]) / 20

    alone = mean_features(None)
    assert mean_features("flops") < alone - 5
    assert mean_features("seconds") < alone - 5


def test_the_same_seed_proposes_the_same_trials_with_a_cost() -> None:
    config = configured(search="optuna", cost="flops")
    trials = [
        replace(trial, flops=int(1e6 * trial.values["optim.lr"])) for trial in ran(make_searcher(config), 9)
    ]
    # Also while others run, or after they failed.
    trials[7] = replace(trials[7], status="running", scores=(), flops=None)
    trials[8] = replace(trials[8], status="failed", scores=())
    first, second = (make_searcher(config).propose(9, trials) for _ in range(2))
    assert first == second


def test_a_cost_without_a_searcher_that_learns_is_refused() -> None:
    with pytest.raises(InputError, match=r"tune\.cost=flops needs tune\.search=optuna"):
        configured(search="random", cost="flops")
