"""Every moment of a training is some activity's, on one rank and on several."""

import re
import time
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranks import DELAY_S, record_training, run_ranks
from torch import nn

from bts_dist.account import (
    ACTIVITIES,
    TRAINING,
    Account,
    Activity,
    Seconds,
    gather,
    shares,
    training_seconds,
)
from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.runtime import LocalRuntime
from shards.store import LocalStore


class Clock:
    """Time that moves when told to."""

    def __init__(self) -> None:
        self.now = 0

    def mark(self) -> int:
        return self.now

    def between(self, marks: list[int]) -> list[float]:
        return [float(after - before) for before, after in pairwise(marks)]


Nest = st.recursive(
    st.tuples(st.sampled_from(ACTIVITIES), st.integers(0, 9), st.booleans(), st.just(())),
    lambda inner: st.tuples(
        st.sampled_from(ACTIVITIES), st.integers(0, 9), st.booleans(), st.lists(inner, max_size=3).map(tuple)
    ),
    max_leaves=12,
)


@given(st.lists(Nest, max_size=4))
def test_time_is_the_innermost_activitys_and_none_is_lost(nests: list[Any]) -> None:
    clock = Clock()
    account = Account(clock)
    expected = dict.fromkeys(ACTIVITIES, 0.0)

    def spend(activity: Activity, seconds: int) -> None:
        clock.now += seconds
        expected[activity] += seconds

    def live(activity: Activity, seconds: int, settles: bool, inner: tuple[Any, ...]) -> None:
        with account.doing(activity):
            spend(activity, seconds)
            for one in inner:
                live(*one)
                spend(activity, 1)
            if settles:
                account.settle()

    for nest in nests:
        live(*nest)
        spend("other", 2)
    assert account.take() == expected
    assert sum(expected.values()) == clock.now
    assert not any(account.take().values())


def test_an_error_ends_its_activity() -> None:
    clock = Clock()
    account = Account(clock)
    with pytest.raises(KeyError), account.doing("data"):
        raise KeyError
    clock.now += 5
    assert account.take()["other"] == 5


def test_what_is_underway_is_divided_between_two_accounts() -> None:
    clock = Clock()
    account = Account(clock)
    with account.doing("data"):
        clock.now += 3
        assert account.take()["data"] == 3
        clock.now += 4
    assert account.take()["data"] == 4


Spent = st.fixed_dictionaries({activity: st.floats(0, 1e4) for activity in ACTIVITIES}).filter(
    lambda rank: sum(rank[activity] for activity in TRAINING) > 1e-3
)


@given(st.lists(Spent, min_size=1, max_size=5))
def test_shares_add_up_to_one(by_rank: list[Seconds]) -> None:
    row = shares(by_rank)
    assert sum(value for key, value in row.items() if key.startswith("share/")) == pytest.approx(1)
    assert 0 <= row["straggler/wait"] <= 1
    assert min(by_rank, key=lambda r: r["exchange"] / training_seconds([r])) in (
        rank for number, rank in enumerate(by_rank) if number == row["straggler/rank"]
    )


def spent(**seconds: float) -> Seconds:
    return {activity: seconds.get(activity, 0.0) for activity in ACTIVITIES}


def test_the_slow_rank_is_the_one_that_waits_least() -> None:
    fast, slow = spent(compute=4, exchange=6, validation=90), spent(compute=9, exchange=1)
    row = shares([fast, slow, fast])
    assert row["share/compute"] == pytest.approx(17 / 30)
    assert row["share/exchange"] == pytest.approx(13 / 30)
    assert row["straggler/rank"] == 1
    assert row["straggler/wait"] == pytest.approx((0.6 + 0.1 + 0.6) / 3 - 0.1)
    assert "share/validation" not in row
    assert training_seconds([fast, slow, fast]) == 10
    assert shares([slow])["straggler/wait"] == 0


def test_one_process_has_its_own_account_alone(runtime: LocalRuntime) -> None:
    mine = spent(data=1.25, validation=3)
    assert gather(mine, runtime) == [mine]


def test_what_follows_the_gradients_is_exchange() -> None:
    """A stand-in for DDP: with the last gradient it queues a callback, which takes its time."""
    clock = Clock()
    account = Account(clock)
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    account.watch(network)
    ready = 0

    def wait() -> None:
        clock.now += 7

    def arrived(_: torch.Tensor) -> None:
        nonlocal ready
        clock.now += 2
        ready += 1
        if ready % 4 == 0:
            torch.autograd.Variable._execution_engine.queue_callback(wait)

    for parameter in network.parameters():
        parameter.register_post_accumulate_grad_hook(arrived)
    for _ in range(2):
        with account.doing("compute"):
            clock.now += 1
            network(torch.ones(1, 2)).sum().backward()
        clock.now += 3
    taken = account.take()
    assert (taken["compute"], taken["exchange"], taken["other"]) == (18, 14, 6)


KEYS = [f"share/{activity}" for activity in TRAINING]


@pytest.fixture(scope="module")
def slowed(config: Config, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks recorded of an epoch of 4 steps where the second one is slow."""
    settings = {
        "train.epochs": 1,
        "train.global_batch": 8,
        "data.decode_threads": 0,  # nothing is read ahead: the whole delay of the data is the step's
    }
    usual = with_overrides(config, {**settings, "run.name": "usual"})
    exact = with_overrides(usual, {"train.deterministic": True, "run.name": "exact"})
    jobs = {"usual": usual, "exact": exact}
    return run_ranks(tmp_path_factory.mktemp("slowed"), jobs, 2, slow_rank=1, still_s=DELAY_S / 3)


def test_a_slow_rank_keeps_the_other_one_waiting(slowed: list[dict[str, Any]]) -> None:
    """In each step for the loss of the slow one's late batch, and then for its late gradient."""
    (fast,), (slow,) = (rank["usual"]["accounts"] for rank in slowed)
    assert slow["data"] >= 4 * DELAY_S
    assert slow["compute"] >= 4 * DELAY_S
    # The wait for the gradient is no part of the backward pass.
    assert slow["compute"] - fast["compute"] > 2 * DELAY_S
    assert fast["exchange"] - slow["exchange"] > 4 * DELAY_S
    (row,) = slowed[0]["usual"]["rows"]
    assert row["straggler/rank"] == 1
    assert row["straggler/wait"] > 0


def test_a_rank_that_stands_still_is_named_while_the_other_waits(slowed: list[dict[str, Any]]) -> None:
    """For these ranks a fraction of a second is as long as most of a minute is for others."""
    notes = [note for rank in slowed[:1] for job in ("usual", "exact") for note in rank[job]["notes"]]
    assert any(
        re.match(r"rank 1 \(process \d+ on .+\) has stood still for .* in (data|compute), \w+\.py:\d+", note)
        for note in notes
    ), notes


@pytest.mark.parametrize("job", ["usual", "exact"])
def test_each_part_of_a_step_is_accounted_for(slowed: list[dict[str, Any]], job: str) -> None:
    for rank in slowed:
        (account,) = rank[job]["accounts"]
        # The only checkpoint is the epoch's last, which comes after its account.
        assert {activity for activity in ACTIVITIES if account[activity] == 0} == {"checkpoint"}
    assert slowed[1][job]["accounts"][0]["data"] >= 4 * DELAY_S


@pytest.mark.parametrize("job", ["usual", "exact"])
def test_ranks_report_the_same_figures_of_all_of_them(slowed: list[dict[str, Any]], job: str) -> None:
    (first,), (second,) = (rank[job]["reports"] for rank in slowed)
    assert first == second
    accounts = [rank[job]["accounts"][0] for rank in slowed]
    assert first["time/train_s"] == pytest.approx(training_seconds(accounts))
    assert sum(first[key] for key in KEYS) == pytest.approx(1)
    assert {key: first[key] for key in shares(accounts)} == pytest.approx(shares(accounts))


def test_an_epochs_row_adds_up(config: Config, runtime: LocalRuntime, run: LocalStore) -> None:
    began = time.perf_counter()
    record = record_training(with_overrides(config, {"train.checkpoint_steps": 2}), runtime, run)
    lasted = time.perf_counter() - began
    for row in record["rows"]:
        assert sum(row[key] for key in KEYS) == pytest.approx(1)
        assert row["samples_per_s"] == pytest.approx(32 / row["time/train_s"])
        assert row["mfu"] == pytest.approx(row["flops_per_s"] / row["peak_flops_per_s"])
        assert row["time/val_s"] > 0
        assert row["share/checkpoint"] > 0
    assert sum(row["time/train_s"] + row["time/val_s"] for row in record["rows"]) < lasted
