"""The winner of a search beside the config as it stands, both with fresh seeds, scored once."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trial_records import validated

from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.run import absolute, open_run
from bts_dist.track import read_metrics
from cluster import search_stage
from cluster.stages import data_id
from cluster.tune_confirmation import (
    METRICS,
    Outcome,
    arms,
    compare,
    confirmation_config,
    read_confirmation,
    seeds,
    table,
)
from cluster.tune_ledger import Ledger, Trial, open_ledger
from cluster.tune_results import PAGE
from shards.errors import InputError
from shards.store import LocalStore, ObjectStore


def outcome(arm: str, seed: int, dice: list[float]) -> Outcome:
    """A model that scored so on patients a, b, c …; all its means are that of ``dice``."""
    mean = sum(dice) / len(dice)
    score: dict[str, Any] = {
        "metrics": {metric: {"mean": mean} for metric in METRICS},
        "patients": [{"patient": name, "dice": value} for name, value in zip("abcdef", dice, strict=False)],
        "checkpoint": "step-1",
    }
    return Outcome(arm, 5 if arm == "best" else 0, seed, f"runs/{arm}-{seed}", score)


def test_means_spread_and_a_paired_interval_are_told() -> None:
    # The patients differ far more than the two arms do, which pairing does not mind.
    found = compare(
        [
            outcome("default", 1, [0.2, 0.5, 0.8]),
            outcome("default", 2, [0.3, 0.6, 0.9]),
            outcome("best", 1, [0.3, 0.6, 0.9]),
            outcome("best", 2, [0.34, 0.66, 0.98]),
        ],
        resamples=500,
        seed=0,
    )
    row = found["metrics"]["dice/patient"]
    assert row["default"] == pytest.approx({"mean": 0.55, "low": 0.5, "high": 0.6})
    assert row["best"] == pytest.approx({"mean": 0.63, "low": 0.6, "high": 0.66})
    assert row["difference"] == pytest.approx(0.08)
    # By patient 0.07, 0.08 and 0.09: no resample's mean lies outside of them.
    interval = found["interval"]
    assert interval["patients"] == 3
    assert 0.07 - 1e-9 <= interval["low"] < 0.08 < interval["high"] <= 0.09 + 1e-9
    assert (found["seeds"], found["winner"]) == ([1, 2], 5)
    assert [run["dice/patient"] for run in found["runs"]] == pytest.approx([0.5, 0.6, 0.6, 0.66])
    assert table(found)[1] == [
        "dice/patient", "0.5500", "0.5000 – 0.6000", "0.6300", "0.6000 – 0.6600", "+0.0800",
    ]  # fmt: skip


def test_seeds_are_fresh_and_runs_lie_in_the_searchs_folder() -> None:
    config = with_overrides(
        Config(),
        {"tune.confirm": 3, "train.seed": 7, "train.epochs": 9, "run.dir": "s3://b/r", "run.name": "x"},
    )
    assert seeds(config) == [8, 9, 10]
    best = with_overrides(config, {"optim.lr": 0.5})
    ledger = Ledger("s3://b/r/x/tune/abc", config.store)
    default, winner = (
        confirmation_config(arm, ledger, 8) for arm in arms(config, best, Trial(3, {"optim.lr": 0.5}))
    )
    assert (default.optim.lr, winner.optim.lr) == (config.optim.lr, 0.5)
    assert {c.train.seed for c in (default, winner)} == {8}
    assert {c.train.epochs for c in (default, winner)} == {9}
    assert default.run.name == "0000-seed-8"
    assert f"{winner.run.dir}/{winner.run.name}" == "s3://b/r/x/tune/abc/confirmation/0003-seed-8"
    assert winner.track.group == "x-abc"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_search_is_confirmed_once(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    searched = with_overrides(
        config,
        {
            "cluster.runtime": "local",
            "cluster.workers": 1,
            "optim.lr": 1e-3,
            "tune.trials": 2,
            "tune.epochs": 1,
            "tune.points": [{"optim.lr": 1e-2}],
            "tune.confirm": 1,
        },
    )
    # The search itself has been, and its second trial was the better one.
    ledger = open_ledger(absolute(searched), data_id(searched))
    for number, (lr, score) in enumerate([(1e-3, 0.4), (1e-2, 0.5)]):
        ledger.propose(number, {"optim.lr": lr})
        validated(ledger, number, [score])
        ledger.conclude(number, "finished")
    best = search_stage.tune(searched)
    assert best.optim.lr == 1e-2
    run = open_run(searched)
    found = read_confirmation(run)
    assert found is not None
    assert (found["seeds"], found["winner"], found["interval"]["patients"]) == ([1], 1, 2)
    assert [(r["arm"], r["trial"], r["seed"]) for r in found["runs"]] == [("default", 0, 1), ("best", 1, 1)]
    # Trained in full, each in a run of its own.
    trained = [LocalStore(r["run"], Path(r["run"])) for r in found["runs"]]
    assert [len(read_metrics(store, "epoch")) for store in trained] == [2, 2]
    assert isinstance(run, LocalStore)
    assert "Confirmation on test patients" in (run.root / PAGE).read_text()
    before = [_files(store) for store in trained]
    capsys.readouterr()
    search_stage.tune(searched)
    assert capsys.readouterr().out.count("up to date") == 5
    assert [_files(store) for store in trained] == before
    assert read_confirmation(run) == found


def test_without_test_patients_there_is_no_confirmation(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    untested = SimpleNamespace(patients={"train": ["a"], "val": ["b"], "test": []}, splits_patients=False)
    monkeypatch.setattr(search_stage, "load_manifest", lambda store: untested)
    with pytest.raises(InputError, match=r"no test patients to confirm .*tune\.confirm=0"):
        search_stage.tune(with_overrides(config, {"tune.confirm": 2}))


def test_slices_of_patients_seen_in_training_confirm_nothing(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = SimpleNamespace(patients={"train": ["a"], "val": ["a"], "test": ["a"]}, splits_patients=True)
    monkeypatch.setattr(search_stage, "load_manifest", lambda store: split)
    with pytest.raises(InputError, match=r"split by slice, .* confirm nothing; .*tune\.confirm=0"):
        search_stage.tune(with_overrides(config, {"tune.confirm": 2}))


def _files(store: ObjectStore) -> list[str]:
    return [entry.key for entry in store.list("")]
