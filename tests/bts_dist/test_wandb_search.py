"""W&B is told of a search offline too: one group, the table of trials, and which is the best."""

import os
from pathlib import Path

import pytest
from wandb_log import read_all

from bts_dist import wandb_search
from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.lease import last_writer
from bts_dist.run import open_run
from bts_dist.track import open_tracker, wandb_id
from bts_dist.wandb_search import mark_best, record_search
from shards.store import LocalStore

ROWS = [
    {"trial": 0, "optim.lr": 0.1, "optim.ema": None, "val/dice/patient": 0.5, "scores": [0.5], "error": None},
    {"trial": 1, "optim.lr": 0.2, "optim.ema": 0.9, "val/dice/patient": 0.7, "scores": [0.7], "error": None},
]


@pytest.fixture
def offline(config: Config, tmp_path: Path) -> Config:
    track = {"wandb": "offline", "group": "run-abc", "tags": ["lgg"]}
    return with_overrides(config, {"track": track, "run.dir": str(tmp_path)})


def test_the_search_is_a_run_with_a_table_and_the_best(offline: Config, tmp_path: Path) -> None:
    place = LocalStore(str(tmp_path / "search"), tmp_path / "search")
    record_search(offline, place, place.root, ROWS, 1)
    (log,) = read_all(place.root, wandb_id(place))
    assert (log.group, log.job_type, log.tags) == ("run-abc", "tune", ["lgg"])
    assert log.history[-1]["trials.nrows"] == 2
    assert log.summary["best/trial"] == 1
    assert log.summary["best/val/dice/patient"] == 0.7
    assert log.exit_code == 0


def test_a_search_that_is_concluded_again_shows_its_newest_table(offline: Config, tmp_path: Path) -> None:
    """With no more trials than before, and a first record that was cut short."""
    place = LocalStore(str(tmp_path / "search"), tmp_path / "search")
    record_search(offline, place, place.root, ROWS, 1)
    [path] = place.root.glob("wandb/offline-run-*/run-*.wandb")
    path.write_bytes(path.read_bytes()[:-5])
    record_search(offline, place, place.root, ROWS, 0)
    first, second = read_all(place.root, wandb_id(place))
    assert [[row["_step"] for row in log.history] for log in (first, second)] == [[1], [2]]
    assert (first.exit_code, second.exit_code) == (None, 0)


def test_while_a_record_is_written_others_can_tell_by_whom(
    offline: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = LocalStore(str(tmp_path / "search"), tmp_path / "search")
    seen: list[bool] = []

    def table_file(*_: object) -> dict[str, object]:
        sign = last_writer(place, wandb_id(place))
        assert sign is not None
        assert sign.owner.pid == os.getpid()
        seen.append(sign.lives(pytest.fail))
        return {}

    monkeypatch.setattr(wandb_search, "table_file", table_file)
    record_search(offline, place, place.root, ROWS, 1)
    sign = last_writer(place, wandb_id(place))
    assert sign is not None
    assert (seen, sign.lives(pytest.fail)) == ([True], False)


def test_the_best_trial_is_tagged_in_its_own_run(offline: Config) -> None:
    trial = with_overrides(offline, {"run.name": "0001", "track.job_type": "trial"})
    run = open_run(trial)
    assert isinstance(run, LocalStore)
    own = wandb_id(run)
    with open_tracker(trial, run, run.root, step=0, wandb_id=own, published=lambda: 1) as tracker:
        tracker.log("epoch", 1, {"epoch": 1, "lr": 0.1})
    mark_best(trial)
    first, second = read_all(run.root, own)
    assert (first.group, first.job_type, first.tags) == ("run-abc", "trial", ["lgg"])
    assert (second.group, second.job_type, second.tags) == ("run-abc", "trial", ["lgg", "best"])
    assert second.summary["search/best"] is True
    # The rows are the training's alone.
    assert [len(log.history) for log in (first, second)] == [1, 0]


def test_nothing_is_told_when_wandb_is_disabled(config: Config, tmp_path: Path) -> None:
    place = LocalStore(str(tmp_path), tmp_path)
    record_search(config, place, place.root, ROWS, 1)
    mark_best(with_overrides(config, {"run.dir": str(tmp_path)}))
    assert list(tmp_path.iterdir()) == []
