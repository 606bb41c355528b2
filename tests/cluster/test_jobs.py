"""Packing, training, searching and scoring on a real Ray cluster give what they give without one."""

import hashlib
import time
from pathlib import Path

import pytest
import ray

from bts_dist import checkpoint
from bts_dist.compose import load_config, with_overrides
from bts_dist.config import Config
from bts_dist.model import find_model
from bts_dist.run import open_run
from bts_dist.track import read_metrics
from cluster.pack_job import run_pack
from cluster.score_job import run_choice, run_scoring
from cluster.train_job import run_training
from cluster.tune_job import BEST, run_search
from cluster.tune_ledger import METRIC, Trial
from cluster.tune_results import PAGE, read_trials
from shards.errors import InputError
from shards.verify import verify_source

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def hashes(folder: Path, pattern: str) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob(pattern))}


def test_ray_tasks_pack_the_same_bytes_as_a_process(config: Config, packed: Path, tmp_path: Path) -> None:
    other = with_overrides(config, {"data.shards": str(tmp_path / "again")})
    manifest = run_pack(other, verify_source(config.data.source, config.store, 1))
    assert hashes(tmp_path / "again", "*.tar") == hashes(packed, "*.tar")
    assert len(manifest.shards) > 3


def test_two_workers_train_like_one(config: Config, tmp_path: Path) -> None:
    two = run_training(config)
    one = run_training(
        with_overrides(config, {"cluster.runtime": "local", "run.dir": str(tmp_path / "local")})
    )
    rows = [read_metrics(open_run(c), "epoch") for c in (config, _at(config, tmp_path / "local"))]
    assert two.epoch == one.epoch == 2
    assert two.step == one.step
    for ray_row, local_row in zip(*rows, strict=True):
        assert ray_row["train/loss"] == pytest.approx(local_row["train/loss"], abs=1e-4)
    # Only rank 0 keeps a record: one row an epoch, not one a worker.
    assert [r["epoch"] for r in rows[0]] == [1, 2]
    note = read_metrics(open_run(config), "note")[-1]["text"]
    assert "2 worker(s)" in note


def test_a_search_leaves_a_config_that_trains_and_a_free_cluster(config: Config) -> None:
    hopeless = {"optim.lr": 1e-9}
    # Only the data tell that their slices of 32 pixels do not divide by 64.
    impossible = {"model.depth": 7}
    events: list[str] = []
    most = 0

    def watch(trials: list[Trial], event: str) -> None:
        nonlocal most
        events.append(event)
        most = max(most, sum(not trial.ended for trial in trials))

    search = run_search(
        with_overrides(
            config,
            {
                "data.image_size": None,
                "cluster.workers": 1,
                "tune.trials": 4,
                "tune.epochs": 4,
                "tune.space": {
                    "optim.lr": {"loguniform": [1e-9, 1e-2]},
                    "model.depth": {"choice": [3, 7]},
                },
                # The hopeless score alike, so at the latest the second of them is behind at the first rung.
                "tune.points": [hopeless, impossible, hopeless],
            },
        ),
        watch,
    )
    run = open_run(config)
    trials = read_trials(run)
    assert [t["trial"] for t in trials] == [0, 1, 2, 3]
    assert [t["optim.lr"] for t in trials] == [config.optim.lr, 1e-9, config.optim.lr, 1e-9]
    assert trials[0]["status"] == "finished"
    # What cannot train is told, and the search goes on.
    assert trials[2]["status"] == "failed"
    assert "do not divide by 64" in trials[2]["error"]
    assert trials[3]["status"] == "stopped"
    assert trials[3]["epochs"] < 4
    assert "trial 3 is stopped after epoch" in "\n".join(events)
    # Two workers of the cluster, one a trial.
    assert most == 2
    best = max((t for t in trials if t["status"] != "failed"), key=lambda t: t[METRIC])
    assert (search.best.optim.lr, search.best.model.depth) == (best["optim.lr"], 3)
    written = Path(config.run.dir) / "test" / BEST
    assert load_config([written]) == search.best
    assert (Path(config.run.dir) / "test" / PAGE).is_file()
    _wait_until_free()


def test_scores_do_not_depend_on_the_workers(config: Config, tmp_path: Path) -> None:
    run_training(with_overrides(config, {"cluster.runtime": "local", "train.epochs": 1}))
    place = find_model(str(tmp_path / "runs" / "test"), config.store)
    files = ("score.json", "patients.csv")
    folder = Path(run_scoring(place, config)[0])
    on_ray = [(folder / f).read_bytes() for f in files]
    run_scoring(place, with_overrides(config, {"cluster.runtime": "local"}))
    assert [(folder / f).read_bytes() for f in files] == on_ray


def test_choices_do_not_depend_on_the_workers(config: Config, tmp_path: Path) -> None:
    run_training(with_overrides(config, {"cluster.runtime": "local"}))
    place = find_model(str(tmp_path / "runs" / "test"), config.store)
    on_ray = run_choice(place, config)
    assert on_ray.chosen is not None
    assert len(on_ray.chosen["rows"]) == 4
    here = run_choice(place, with_overrides(config, {"cluster.runtime": "local"}))
    assert here == on_ray
    assert here.chosen == on_ray.chosen


def test_fewer_samples_than_workers_is_refused_before_any_worker_starts(config: Config) -> None:
    with pytest.raises(InputError, match=r"lower cluster\.workers"):
        run_training(with_overrides(config, {"cluster.workers": 40, "train.global_batch": 40}))
    assert not checkpoint.names(open_run(config))


def _at(config: Config, folder: Path) -> Config:
    return with_overrides(config, {"run.dir": str(folder)})


def _wait_until_free(timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    total = ray.cluster_resources()["CPU"]
    while ray.available_resources().get("CPU", 0) < total:
        assert time.monotonic() < end, f"still held: {ray.available_resources()} of {total} CPUs"
        time.sleep(0.2)
