"""The search space is checked before anything starts."""

from typing import Any

import pytest

from bts_dist.compose import with_overrides
from bts_dist.config import Config
from cluster.tune_job import parse_space, trial_config, values_of
from shards.errors import InputError


def space(**entries: dict[str, Any]) -> Config:
    return with_overrides(
        Config(), {"tune": {"space": {k.replace("__", "."): v for k, v in entries.items()}}}
    )


def test_every_distribution_is_understood() -> None:
    config = space(
        optim__lr={"loguniform": [1e-4, 1e-2]},
        optim__weight_decay={"uniform": [0.0, 0.1]},
        train__global_batch={"choice": [8, 16]},
    )
    assert set(parse_space(config)) >= {"optim.lr", "optim.weight_decay", "train.global_batch"}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"optim__lrr": {"uniform": [0.1, 0.2]}}, "optim.lrr is not a key"),
        ({"optim__lr": {"normal": [0.1, 0.2]}}, "'normal' is not one of"),
        ({"optim__lr": {"uniform": [0.2, 0.1]}}, "low < high"),
        ({"optim__lr": {"loguniform": [0.0, 0.1]}}, "low > 0"),
        ({"optim__lr": {"loguniform": [-1.0, 0.1]}}, "low > 0"),
        ({"optim__lr": {"choice": [0.1, "fast"]}}, "'fast' should be a valid number"),
        ({"optim__lr": {"choice": []}}, "must be a list of values"),
        ({"optim__lr": {"choice": [1.0], "uniform": [1.0, 2.0]}}, "must have one of"),
        (
            {"train__global_batch": {"uniform": [8.5, 9.5]}},
            "train.global_batch: 8.5 should be a valid integer",
        ),
        ({"train__epochs": {"choice": [2, 4]}}, "train.epochs cannot be searched"),
    ],
)
def test_an_impossible_space_names_itself(entry: dict[str, dict[str, Any]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_space(space(**entry))


def test_the_first_trial_is_the_config_as_it_stands() -> None:
    config = with_overrides(Config(), {"optim.lr": 0.0123})
    assert values_of(config, ["optim.lr", "schedule.warmup_epochs"]) == {
        "optim.lr": 0.0123,
        "schedule.warmup_epochs": 1.0,
    }


def test_a_trial_is_shorter_and_lies_below_its_run() -> None:
    config = with_overrides(Config(), {"run.dir": "s3://bucket/runs", "run.name": "a", "tune.epochs": 3})
    trial = trial_config(config, {"optim.lr": 0.5}, "t1")
    assert (trial.train.epochs, trial.optim.lr) == (3, 0.5)
    assert (trial.run.dir, trial.run.name) == ("s3://bucket/runs/a/tune", "t1")
