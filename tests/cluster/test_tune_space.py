"""The search space is checked before anything starts, and draws what the config takes."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bts_dist.compose import with_overrides
from bts_dist.config import Config
from cluster.tune_space import own_values, parse_space
from shards.errors import InputError

SCHEDULES = {
    "choice": [
        {"kind": "cosine", "warmup_epochs": {"uniform": [0, 2]}},
        {"kind": "step", "every_epochs": {"randint": [2, 8]}, "factor": {"choice": [0.1, 0.5]}},
        {"warmup_epochs": 2, "kind": "polynomial"},
    ]
}


class Pick:
    """Draws from a generator, and keeps the names it was asked for."""

    def __init__(self, seed: int) -> None:
        self.generator = random.Random(seed)
        self.names: list[str] = []

    def real(self, name: str, low: float, high: float, *, log: bool) -> float:
        self.names.append(name)
        return self.generator.uniform(low, high)

    def position(self, name: str, count: int, *, ordered: bool) -> int:
        self.names.append(name)
        return self.generator.randrange(count)


def space(config: Config | None = None, **entries: Any) -> Config:
    keys = {k.replace("__", "."): v for k, v in entries.items()}
    return with_overrides(config or Config(), {"tune": {"space": keys}})


EVERYTHING = space(
    optim__lr={"loguniform": [1e-4, 1e-2]},
    optim__weight_decay={"uniform": [0, 0.1]},
    optim__ema={"choice": [None, 0.9]},
    train__global_batch={"quniform": [8, 32, 8]},
    model__features={"randint": [4, 7]},
    schedule=SCHEDULES,
)


@given(st.integers())
def test_every_point_of_the_space_is_a_config(seed: int) -> None:
    parsed = parse_space(EVERYTHING)
    pick = Pick(seed)
    point = parsed.draw(pick)
    config = with_overrides(EVERYTHING, point)
    assert 1e-4 <= config.optim.lr <= 1e-2
    assert config.train.global_batch in (8, 16, 24, 32)
    assert config.model.features in (4, 5, 6, 7)
    assert set(pick.names) <= set(parsed.places())
    # The settings of a schedule are drawn with it alone.
    assert config.schedule.kind == point["schedule.kind"]
    assert ("schedule.every_epochs" in point) == (config.schedule.kind == "step")
    # And a point is found again where it was drawn.
    assert set(parsed.locate(point)) == set(pick.names)


def test_every_value_is_drawn_at_some_time() -> None:
    points = [parse_space(EVERYTHING).draw(Pick(seed)) for seed in range(200)]
    assert {p["train.global_batch"] for p in points} == {8, 16, 24, 32}
    assert {p["model.features"] for p in points} == {4, 5, 6, 7}
    assert {p["optim.ema"] for p in points} == {None, 0.9}
    assert {p["schedule.kind"] for p in points} == {"cosine", "step", "polynomial"}
    assert {p["schedule.every_epochs"] for p in points if "schedule.every_epochs" in p} == set(range(2, 9))


def test_steps_are_round_numbers() -> None:
    config = space(augment__flip={"quniform": [0, 0.3, 0.1]})
    assert [p["augment.flip"] for p in parse_space(config).grid()] == [0, 0.1, 0.2, 0.3]


def test_a_grid_is_every_combination() -> None:
    config = space(
        optim__ema={"choice": [None, 0.9]},
        schedule={"choice": [{"kind": "constant"}, {"kind": "step", "factor": {"choice": [0.1, 0.5]}}]},
    )
    points = list(parse_space(config).grid())
    assert parse_space(config).grid_size() == len(points)
    assert points == [
        {"optim.ema": ema, **schedule}
        for ema in (None, 0.9)
        for schedule in (
            {"schedule.kind": "constant"},
            {"schedule.kind": "step", "schedule.factor": 0.1},
            {"schedule.kind": "step", "schedule.factor": 0.5},
        )
    ]


def test_a_value_that_the_space_cannot_give_has_no_place() -> None:
    parsed = parse_space(space(optim__lr={"uniform": [0.1, 0.2]}, optim__ema={"choice": [0.9]}))
    assert parsed.locate({"optim.lr": 0.3, "optim.ema": None}) == {}
    assert parsed.locate({"optim.lr": 0.1, "optim.ema": 0.9}) == {"optim.lr": 0.1, "optim.ema": 0}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"optim__lrr": {"uniform": [0.1, 0.2]}},
            r"tune.space: optim.lrr: unknown key; did you mean optim.lr",
        ),
        ({"optimm__lr": {"uniform": [0.1, 0.2]}}, r"tune.space: optimm: unknown key"),
        ({"optim__lr": {"normal": [0.1, 0.2]}}, "optim.lr must have one of"),
        ({"optim__lr": {"uniform": [0.2, 0.1]}}, "low < high"),
        ({"optim__lr": {"uniform": ["a", "b"]}}, "list of numbers"),
        ({"optim__lr": {"uniform": [0.1, 0.2, 0.3]}}, r"\[low, high\]"),
        ({"optim__lr": {"loguniform": [0.0, 0.1]}}, "low > 0"),
        ({"optim__lr": {"loguniform": [-1.0, 0.1]}}, "low > 0"),
        ({"optim__lr": {"quniform": [0.1, 0.2, 0]}}, "step > 0"),
        ({"optim__lr": {"choice": [0.1, "fast"]}}, "optim.lr: 'fast' should be a valid number"),
        ({"optim__lr": {"choice": []}}, "must be a list of values"),
        ({"optim__lr": {"choice": [1.0], "uniform": [1.0, 2.0]}}, "must have one of"),
        ({"train__global_batch": {"randint": [8, 9.5]}}, "whole numbers"),
        ({"train__global_batch": {"uniform": [8, 16]}}, "train.global_batch: .* should be a valid integer"),
        ({"train__epochs": {"choice": [2, 4]}}, "train.epochs cannot be searched"),
        ({"train": {"choice": [{"epochs": 3}]}}, "train.epochs cannot be searched"),
        ({"cluster__workers": {"choice": [1, 2]}}, "cluster.workers cannot be searched"),
        ({"schedule": {"choice": [{"kind": "stop"}]}}, "schedule.kind: 'stop' is not one of"),
        ({"schedule": {"choice": [{"kind": "step", "warmup": 1}]}}, "schedule.warmup: unknown key"),
        (
            {"schedule": {"choice": [{"kind": "step", "factor": {"uniform": [0.5, 1.5]}}]}},
            "schedule.factor: 1.5 should be less than or equal to 1",
        ),
        (
            {"schedule": {"choice": [{"kind": "step", "factor": {"unifrom": [0.5, 1]}}]}},
            r"choice\[0\].factor",
        ),
    ],
)
def test_an_impossible_space_names_itself(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_space(space(**entry))


def test_an_empty_space_is_refused() -> None:
    with pytest.raises(InputError, match=r"tune.space is empty"):
        parse_space(space())


def test_a_continuous_range_has_no_grid() -> None:
    parsed = parse_space(space(schedule=SCHEDULES))
    with pytest.raises(InputError, match=r"schedule.warmup_epochs is a continuous range"):
        list(parsed.grid())


def test_the_configs_own_values_are_those_of_the_searched_keys() -> None:
    config = space(
        with_overrides(Config(), {"optim.lr": 0.0123}),
        optim__lr={"uniform": [0.1, 0.2]},
        schedule={"choice": [{"kind": "constant"}]},
    )
    assert own_values(config, parse_space(config)) == {
        "optim.lr": 0.0123,
        "schedule.kind": "cosine",
        "schedule.warmup_epochs": 1.0,
        "schedule.final": 0.0,
    }
