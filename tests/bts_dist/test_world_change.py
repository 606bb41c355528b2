"""A run that goes on with another number of workers, in the middle of an epoch, trains as if it had not."""

from itertools import chain
from pathlib import Path

import pytest
import torch
from ranks import Record, record_training, run_ranks

from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.runtime import LocalRuntime
from shards.store import LocalStore

STEPS = 16
STOPS = (6, 13)
"""Steps before which the run is interrupted: within the first epoch of 8 steps, and within the second."""


def jobs(config: Config) -> dict[str, Config]:
    usual = with_overrides(
        config,
        {"train.epochs": 2, "train.checkpoint_steps": 1, "train.keep_checkpoints": 9, "run.name": "usual"},
    )
    exact = with_overrides(usual, {"train.deterministic": True, "model.dropout": 0.1, "run.name": "exact"})
    return {"usual": usual, "exact": exact}


def alone(folder: Path, config: Config, stop_before: int | None = None) -> Record:
    root = folder / str(config.run.name)
    runtime = LocalRuntime(0, 1, 0, torch.device("cpu"))
    return record_training(config, runtime, LocalStore(str(root), root), stop_before)


@pytest.fixture(scope="module")
def steady(config: Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    """Each job with one worker from beginning to end."""
    folder = tmp_path_factory.mktemp("steady")
    return {name: alone(folder, job) for name, job in jobs(config).items()}


@pytest.fixture(scope="module")
def changing(config: Config, tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Record]]]:
    """Each job with two workers, then one, then three: by stage and rank."""
    folder = tmp_path_factory.mktemp("changing")
    two = run_ranks(folder, jobs(config), 2, STOPS[0])
    one = {name: alone(folder, job, STOPS[1]) for name, job in jobs(config).items()}
    return [two, [one], run_ranks(folder, jobs(config), 3)]


def merged(stages: list[list[dict[str, Record]]], name: str) -> list[Record]:
    """Steps in order, each with the ids of all ranks."""
    steps = []
    for ranks in stages:
        for parts in zip(*(rank[name]["steps"] for rank in ranks), strict=True):
            assert len({(part["step"], part["loss"]) for part in parts}) == 1, "ranks disagree"
            steps.append({**parts[0], "ids": list(chain.from_iterable(part["ids"] for part in parts))})
    return steps


@pytest.mark.parametrize("name", ["usual", "exact"])
def test_every_global_batch_is_the_same_and_comes_once(
    steady: dict[str, Record], changing: list[list[dict[str, Record]]], name: str
) -> None:
    steps = merged(changing, name)
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
    assert [step["ids"] for step in steps] == [step["ids"] for step in steady[name]["steps"]]
    for epoch in (steps[:8], steps[8:]):
        ids = list(chain.from_iterable(step["ids"] for step in epoch))
        assert len(ids) == len(set(ids)) == 32


def test_the_loss_differs_by_rounding_alone(
    steady: dict[str, Record], changing: list[list[dict[str, Record]]]
) -> None:
    pairs = zip(merged(changing, "usual"), steady["usual"]["steps"], strict=True)
    assert max(abs(ours["loss"] - theirs["loss"]) for ours, theirs in pairs) < 1e-4


def test_a_deterministic_run_has_the_same_bits(
    steady: dict[str, Record], changing: list[list[dict[str, Record]]]
) -> None:
    ours, theirs = merged(changing, "exact"), steady["exact"]["steps"]
    assert [step["loss"] for step in ours] == [step["loss"] for step in theirs]
    for rank in changing[-1]:
        assert rank["exact"]["weights"] == steady["exact"]["weights"]


def test_a_second_forward_pass_in_place_of_kept_activations_has_the_same_bits(
    steady: dict[str, Record], config: Config, tmp_path: Path
) -> None:
    small = alone(tmp_path, with_overrides(jobs(config)["exact"], {"train.micro_batch": 1}))
    assert [step["loss"] for step in small["steps"]] == [step["loss"] for step in steady["exact"]["steps"]]
    assert small["weights"] == steady["exact"]["weights"]


def test_a_usual_run_does_not(steady: dict[str, Record], changing: list[list[dict[str, Record]]]) -> None:
    """Else the test of the deterministic one would show nothing."""
    assert changing[-1][0]["usual"]["weights"] != steady["usual"]["weights"]


def test_the_deterministic_step_is_the_usual_one_but_for_rounding(
    steady: dict[str, Record], config: Config, tmp_path: Path
) -> None:
    job = with_overrides(jobs(config)["usual"], {"train.deterministic": True})
    pairs = zip(alone(tmp_path, job)["steps"], steady["usual"]["steps"], strict=True)
    assert max(abs(ours["loss"] - theirs["loss"]) for ours, theirs in pairs) < 1e-4
