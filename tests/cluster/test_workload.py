"""What there is to do follows from config and data set by arithmetic, and is what a job then does."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bts_dist import predict
from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.ensemble import num_networks
from bts_dist.model import find_model
from bts_dist.run import open_run, run_uri
from bts_dist.runtime import LocalRuntime
from bts_dist.train import train
from cluster.data_size import DataSize, size_of
from cluster.score_job import run_choice, run_scoring
from cluster.workload import Work, bytes_in_all, most_members, plan_folds, plan_work
from shards.manifest import load_manifest
from shards.store import open_store

SIZE = DataSize(
    {"train": 70, "val": 10, "test": 20},
    {"train": 7000, "val": 1000, "test": 2000},
    {"train": 14, "val": 2, "test": 12},
)


def on_s3(**values: object) -> Config:
    changes = {"data.shards": "s3://bucket/set", **{k.replace("__", "."): v for k, v in values.items()}}
    return with_overrides(Config(), changes)


def counts(work: list[Work]) -> dict[str, tuple[int, int]]:
    return {part.stage: (part.trained, part.passes) for part in work}


@pytest.mark.parametrize("trials", [0, 4])
def test_each_stage_counts_its_passes(trials: int) -> None:
    config = on_s3(train__epochs=7, tune__trials=trials, tune__epochs=3, tune__confirm=2)
    # Three checkpoints, mirrored: the best one and the newest two.
    expected = {"train": (490, 140), "choose": (0, 60), "score": (0, 120)}
    if trials:
        # A confirmation's four models are scored as validated: one checkpoint each, mirrored.
        expected |= {"tune": (840, 240), "confirm": (4 * 490, 4 * (140 + 40))}
    assert counts(plan_work(config, SIZE)) == expected


@pytest.mark.parametrize(
    ("values", "validation", "choosing"),
    [
        ({"score__choices": ["threshold"], "score__mirror": False}, 1, 1),
        ({"score__choices": [], "score__mirror": True}, 2, 2),
        ({"score__choices": ["mirror"], "score__mirror": False}, 1, 2),
        ({"score__choices": ["ensemble"], "score__mirror": False}, 1, 3),
        ({"score__choices": ["ensemble"], "score__mirror": False, "score__ensemble": ["a", "b"]}, 1, 5),
        ({"score__choices": ["mirror"], "score__ensemble": ["a", "b"]}, 2, 2),
    ],
)
def test_mirrors_and_members_count_where_they_may_be_chosen(
    values: dict[str, object], validation: int, choosing: int
) -> None:
    found = counts(plan_work(on_s3(train__epochs=5, **values), SIZE))
    assert found == {
        "train": (350, 50 * validation),
        "choose": (0, 10 * choosing),
        "score": (0, 20 * choosing),
    }


def test_no_more_checkpoints_are_averaged_than_there_are_epochs() -> None:
    assert [most_members(on_s3(train__epochs=epochs)) for epochs in (1, 2, 3, 30)] == [1, 2, 3, 3]
    assert most_members(on_s3(train__epochs=30, train__keep_checkpoints=7)) == 8


def test_a_job_does_as_much_as_was_planned(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every forward pass of validation, choosing and scoring is counted where it is made."""
    done = 0
    logits = predict._logits

    def counting(model: torch.nn.Module, image_BCHW: torch.Tensor, *rest: Any) -> torch.Tensor:
        nonlocal done
        done += len(image_BCHW) * num_networks(model)
        return logits(model, image_BCHW, *rest)

    def since() -> int:
        nonlocal done
        passes, done = done, 0
        return passes

    monkeypatch.setattr(predict, "_logits", counting)
    # Pictures come on top of the estimate.
    config = with_overrides(config, {"cluster.runtime": "local", "track.overlays": 0})
    planned = counts(plan_work(config, size_of(load_manifest(open_store(config.data.shards)))))
    run = open_run(config)
    train(config, LocalRuntime(0, 1, 0, torch.device("cpu")), run, run.root)  # type: ignore[attr-defined]
    assert since() == planned["train"][1]
    place = find_model(run_uri(config), config.store)
    run_choice(place, config)
    assert since() == planned["choose"][1]
    run_scoring(place, config)
    assert 0 < since() <= planned["score"][1]


def test_folds_are_added_up_and_scored_once_more() -> None:
    other = DataSize(
        {"train": 60, "val": 20, "test": 20},
        {"train": 6000, "val": 2000, "test": 2000},
        {"train": 12, "val": 4, "test": 4},
    )
    work = plan_folds(on_s3(train__epochs=5), [SIZE, other])
    assert counts(work) == {
        "train": (650, 300),
        "choose": (0, 180),
        "score": (0, 240),
        "score together": (0, 240),
    }
    assert [part.bytes for part in work] == [16_000, 3000, 4000, 4000]
    # Each fold's shards are other shards, and later stages find them on the disk.
    assert bytes_in_all(on_s3(train__epochs=5), [SIZE, other], work) == 20_000
    assert work[0].note == "2 folds"


def test_shards_are_fetched_once_unless_nothing_keeps_them() -> None:
    def fetched(config: Config) -> list[int]:
        return [part.bytes for part in plan_work(config, SIZE)]

    assert fetched(on_s3(train__epochs=5)) == [8000, 1000, 2000]
    # Two tasks of choosing, and three of scoring.
    assert fetched(on_s3(train__epochs=5, data__cache="none")) == [40_000, 2000, 6000]
    assert fetched(on_s3(train__epochs=5, store__cache_gib=1e-6)) == [40_000, 1000, 6000]
    assert fetched(with_overrides(Config(), {"train.epochs": 5})) == [0, 0, 0]


def test_what_stays_on_the_disk_is_read_once_in_all() -> None:
    def in_all(config: Config) -> int:
        return bytes_in_all(config, [SIZE], plan_work(config, SIZE))

    assert in_all(on_s3(train__epochs=5, tune__trials=3, tune__confirm=2)) == 10_000
    assert in_all(on_s3(train__epochs=5, data__cache="none")) == 48_000
    assert in_all(with_overrides(Config(), {"train.epochs": 5})) == 0


def test_a_grid_that_ends_before_its_trials_counts_its_points() -> None:
    grid = {"tune.search": "grid", "tune.space": {"optim.lr": {"choice": [0.1, 0.2]}}, "tune.epochs": 1}
    for trials, counted in ((2, 2), (100, 3)):
        config = with_overrides(on_s3(train__epochs=5), {**grid, "tune.trials": trials})
        assert plan_work(config, SIZE)[0].trained == counted * 70


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0.1, 1e6), st.floats(0.1, 1e6))
def test_twice_as_fast_takes_half_as_long(trained: int, passes: int, train: float, predict: float) -> None:
    work = Work("train", trained, passes, 0)
    assert work.seconds(2 * train, 2 * predict) == pytest.approx(work.seconds(train, predict) / 2)
    assert work.seconds(train, predict) * train >= trained
    assert work.seconds(train, None) == replace(work, passes=0).seconds(train, predict)
