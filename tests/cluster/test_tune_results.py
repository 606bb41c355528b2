"""Ledger, course, table, importance and files of a search, without Ray."""

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console
from trial_records import epoch_row, validated

from bts_dist.compose import dump_yaml, with_overrides
from bts_dist.config import Config
from cluster.tune_course import Course
from cluster.tune_importance import importance
from cluster.tune_ledger import Ledger, Status, Trial, best_of, open_ledger, pareto, search_id, trial_config
from cluster.tune_results import PAGE, TRIALS, read_trials, rung_rows, search_rows, write_page, write_trials
from cluster.tune_search import make_searcher
from cluster.tune_table import budget, sparkline, table
from shards.store import LocalStore

EPOCHS = 4


@pytest.fixture
def config(tmp_path: Path) -> Config:
    space = {"optim.lr": {"loguniform": [1e-4, 1e-1]}, "optim.ema": {"choice": [None, 0.9]}}
    tune = {"trials": 4, "epochs": EPOCHS, "space": space}
    return with_overrides(Config(), {"tune": tune, "run.dir": str(tmp_path), "run.name": "run"})


@pytest.fixture
def ledger(config: Config) -> Ledger:
    return open_ledger(config, "data")


def course(config: Config, ledger: Ledger, events: list[str] | None = None) -> Course:
    told = [] if events is None else events
    result = Course(config, ledger, make_searcher(config), 2, lambda trials, event: told.append(event))
    result.load()
    return result


def test_a_killed_search_is_taken_up_where_it_was(config: Config, ledger: Ledger) -> None:
    first = course(config, ledger)
    assert [first.next() for _ in range(3)] == [0, 1, 2]
    assert all(first.reported(0, epoch_row(epoch, 0.5)) for epoch in range(1, EPOCHS + 1))
    validated(ledger, 0, [0.5] * EPOCHS)
    first.ended(0, failed=False)
    assert not first.reported(1, epoch_row(1, 0.4))
    validated(ledger, 1, [0.4])
    validated(ledger, 2, [0.6, 0.7])
    # Here the process dies, with trial 2 under way.
    events: list[str] = []
    second = course(config, ledger, events)
    assert [t.status for t in second.trials.values()] == ["finished", "stopped", "running"]
    assert events == ["going on: 2 trials have ended, 1 resume"]
    assert second.next() == 2
    # It redoes an epoch, which is not counted twice, and goes on.
    assert second.reported(2, epoch_row(2, 0.7))
    assert second.trials[2].scores == (0.6, 0.7)
    assert second.trials[2].seconds == 4.0
    assert second.next() == 3
    assert second.next() is None
    # Proposed is what would have been, and it is written down.
    assert second.trials[3].values == make_searcher(config).propose(3, [])
    assert [t.number for t in ledger.trials(99)] == [0, 1, 2, 3]
    assert ledger.trial(3).values == second.trials[3].values


def test_a_stop_that_was_not_written_down_is_made_up_for(config: Config, ledger: Ledger) -> None:
    first = course(config, ledger)
    for number, score in enumerate([0.5, 0.6, 0.4]):
        assert first.next() == number
        validated(ledger, number, [score] if number else [score] * EPOCHS)
    second = course(config, ledger)
    # The whole one is finished; of those at the first rung the worst has lost.
    assert [t.status for t in second.trials.values()] == ["finished", "running", "stopped"]
    assert ledger.trial(2).status == "stopped"


def test_failures_of_a_trials_own_settings_are_kept_and_others_tried_again(
    config: Config, ledger: Ledger
) -> None:
    first = course(config, ledger)
    assert [first.next(), first.next()] == [0, 1]
    ledger.conclude(0, "failed", "the loss is nan")  # as the trial itself does
    first.ended(0, failed=True)
    first.ended(1, failed=True)
    assert [(t.status, t.error) for t in first.trials.values()] == [
        ("failed", "the loss is nan"),
        ("failed", "its process was lost"),
    ]
    again = course(config, ledger)
    assert [t.status for t in again.trials.values()] == ["failed", "running"]
    # Now it succeeds.
    assert again.next() == 1
    assert again.reported(1, epoch_row(1, 0.5))
    again.ended(1, failed=False)
    assert course(config, ledger).trials[1].status == "finished"


def test_what_was_proposed_first_stays(ledger: Ledger) -> None:
    ledger.propose(0, {"optim.lr": 0.1})
    ledger.propose(0, {"optim.lr": 0.2})
    assert ledger.trial(0).values == {"optim.lr": 0.1}


def test_more_trials_are_the_same_search_and_other_settings_another(config: Config) -> None:
    same = [{"tune.trials": 99}, {"tune.concurrent": 2}, {"train.epochs": 99}, {"track.project": "x"}]
    other: list[dict[str, Any]] = [
        {"tune.seed": 1},
        {"tune.epochs": 9},
        {"optim.lr": 0.5},
        {"tune.space": {"optim.lr": {"uniform": [0.1, 1]}}},
    ]
    own = search_id(config, "data")
    assert {search_id(with_overrides(config, values), "data") for values in same} == {own}
    ids = {search_id(with_overrides(config, values), "data") for values in other}
    assert len(ids - {own}) == len(other)
    assert search_id(config, "others") != own


def test_a_trial_is_shorter_and_lies_below_its_search(config: Config) -> None:
    elastic = with_overrides(config, {"cluster.workers": [1, 3], "run.dir": "s3://bucket/runs"})
    ledger = open_ledger(elastic, "data")
    own = trial_config(elastic, ledger, Trial(7, {"optim.lr": 0.5}))
    assert (own.train.epochs, own.optim.lr, own.tune.trials, own.cluster.workers) == (EPOCHS, 0.5, 0, 1)
    assert f"{own.run.dir}/{own.run.name}" == ledger.trial_place(7)
    assert ledger.trial_place(7).startswith("s3://bucket/runs/run/tune/")
    assert own.track.group == f"run-{search_id(elastic, 'data')}"


def trials(config: Config, scores: list[list[float]], statuses: list[Status]) -> list[Trial]:
    searcher = make_searcher(config)
    values = [searcher.propose(number, []) or {} for number in range(len(scores))]
    return [
        Trial(n, v, status, tuple(s), 1.5 * len(s))
        for n, (v, s, status) in enumerate(zip(values, scores, statuses, strict=True))
    ]


@pytest.fixture
def done(config: Config) -> list[Trial]:
    found = trials(
        config,
        [[0.1, 0.2, 0.3, 0.3], [0.2, 0.4, 0.5, 0.6], [0.05], []],
        ["finished", "finished", "stopped", "failed"],
    )
    return [*found[:3], replace(found[3], error="too little memory")]


def test_the_best_is_not_a_failed_one(done: list[Trial]) -> None:
    assert best_of(done) == done[1]
    assert best_of([replace(done[1], status="failed"), done[0]]) == done[0]
    assert best_of([done[3]]) is None


def test_trials_are_read_back_from_parquet(config: Config, done: list[Trial], tmp_path: Path) -> None:
    run = LocalStore(str(tmp_path), tmp_path)
    assert read_trials(run) == []
    rows = search_rows(config.tune, done)
    write_trials(run, rows)
    assert read_trials(run) == rows
    assert pq.read_schema(tmp_path / TRIALS).field("optim.lr").type == "double"
    assert rows[2]["epochs"] == 1
    assert rows[3]["error"] == "too little memory"


def test_a_column_of_several_types_is_text(config: Config, tmp_path: Path) -> None:
    run = LocalStore(str(tmp_path), tmp_path)
    rows = search_rows(config.tune, [Trial(0, {"a": 1, "b": None}), Trial(1, {"a": "x", "c": 2.5})])
    write_trials(run, rows)
    assert [(row["a"], row["b"], row["c"]) for row in read_trials(run)] == [
        ("1", None, None),
        ('"x"', None, 2.5),
    ]


def test_the_page_is_written(config: Config, done: list[Trial], tmp_path: Path) -> None:
    run = LocalStore(str(tmp_path), tmp_path)
    write_page(run, config, make_searcher(config), done, dump_yaml(config))
    page = (tmp_path / PAGE).read_text()
    assert "too little memory" in page
    assert "After epoch 1: 2 of 3 went on" in page


def test_who_was_stopped_at_a_rung_is_told(config: Config, done: list[Trial]) -> None:
    rungs = rung_rows(config.tune, done)
    assert [(rung["epoch"], rung["trials"]) for rung in rungs] == [
        (1, [(0, 0.1, True), (1, 0.2, True), (2, 0.05, False)]),
        (2, [(0, 0.2, True), (1, 0.4, True)]),
    ]


def test_trials_that_no_other_beats_in_score_and_cost_are_told(config: Config) -> None:
    points = [(0.5, 10), (0.6, 20), (0.6, 30), (0.4, 5), (0.3, 6), (0.9, 1)]
    found = [
        Trial(n, {}, "finished", (score,), seconds=2.0, flops=flops)
        for n, (score, flops) in enumerate(points)
    ]
    found[5] = replace(found[5], status="failed")
    found.append(Trial(6, {}))
    assert pareto(found, "flops") == {0, 1, 3}
    assert pareto(found, "seconds") == {1, 2}
    priced = with_overrides(config, {"tune.search": "optuna", "tune.cost": "flops"})
    rows = search_rows(priced.tune, found)
    assert [(row["cost"], row["pareto"]) for row in rows[:3]] == [(10, True), (20, True), (30, False)]
    assert "pareto" not in search_rows(config.tune, found)[0]


def test_what_matters_is_told_from_what_does_not(config: Config) -> None:
    searcher = make_searcher(config)
    found = []
    for number in range(1, 40):
        values = searcher.propose(number, []) or {}
        found.append(Trial(number, values, "finished", (1 / (1 + values["optim.lr"]),)))
    shares = importance(searcher.space, found)
    assert shares["optim.lr"] > 0.7
    assert sum(shares.values()) == pytest.approx(1)
    assert importance(searcher.space, found[:3]) == {}


def test_the_table_shows_scores_best_and_budget(config: Config, done: list[Trial]) -> None:
    console = Console(width=200, record=True, file=StringIO())
    console.print(table(config.tune, [*done[:3], replace(done[3], status="running")]))
    text = console.export_text()
    assert "best so far" in text
    assert "0.6000" in text
    assert "running" in text
    assert "3/4 trials, 9 of 16 epochs trained" in text
    assert budget(config.tune, done) == "4/4 trials, 9 of 16 epochs trained, 3 saved by stopping"
    assert sparkline([0.0, 0.5, 1.0, float("nan")]) == "▁▅█ "


def test_a_single_trial_of_one_epoch_is_a_page_too(config: Config, tmp_path: Path) -> None:
    one = with_overrides(config, {"tune.trials": 1, "tune.epochs": 1})
    run = LocalStore(str(tmp_path), tmp_path)
    write_page(run, one, make_searcher(one), trials(one, [[0.5]], ["finished"]), dump_yaml(one))
    page = (tmp_path / PAGE).read_text()
    assert "Too few trials" in page
    assert "The search found nothing better" in page
    assert "Rungs" not in page
