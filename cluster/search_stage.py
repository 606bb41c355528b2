"""The search as a stage: hyperparameters searched, and what was found confirmed where that is asked for."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from bts_dist.compose import config_hash, dump_yaml, with_overrides
from bts_dist.config import Config
from bts_dist.run import absolute, open_run, record_stage, run_uri, stage_record, training_recipe
from bts_dist.score import read_score
from cluster import console
from cluster import tune_confirmation as confirmation
from cluster.resources import ray_cluster
from cluster.stages import data_id, exists, score, train
from cluster.tune_job import BEST, Search, run_search
from cluster.tune_ledger import best_of, open_ledger
from cluster.tune_results import PAGE, search_rows, short, write_page
from cluster.tune_search import make_searcher
from cluster.tune_table import budget, follow_search
from shards.errors import InputError
from shards.manifest import load_manifest
from shards.store import join_uri, open_store


def tune(config: Config) -> Config:
    """Search hyperparameters, and confirm what was found where ``tune.confirm`` says so; what was done is skipped.

    Returns the best config, to train with.

    Raises:
        InputError: as ``run_search``; or there is nothing to confirm on.
    """
    if config.tune.confirm:
        _check_test_patients(config)
    best = _search(config)
    if config.tune.confirm:
        with ray_cluster(config.cluster) if config.cluster.runtime == "ray" else nullcontext():
            _confirm(config, best)
    return best


def _check_test_patients(config: Config) -> None:
    """Refuse, before the search, what its confirmation would refuse after it.

    Raises:
        InputError: the data set has no test patients, or its training has seen them.
    """
    manifest = load_manifest(open_store(config.data.shards, config.store))
    if manifest.splits_patients:
        raise InputError(
            f"{config.data.shards} is split by slice, so its test patients confirm nothing; pack it with "
            "split.kind=patient, or set tune.confirm=0"
        )
    if not manifest.patients["test"]:
        raise InputError(
            f"{config.data.shards} has no test patients to confirm the search on; pack it with a test share, or set "
            "tune.confirm=0"
        )


def _search(config: Config) -> Config:
    run = open_run(config)
    key = config_hash(
        {
            **training_recipe(config),
            "tune": config.tune.model_dump(mode="json", exclude={"confirm"}),
            "data_id": data_id(config),
            "workers": config.cluster.workers,
        },
        length=16,
    )
    record = stage_record(run, "tune")
    if record is not None and record["key"] == key and exists(run, BEST):
        # Where things lie may have changed since; what was searched has not.
        best = with_overrides(config, record["values"])
        console.stage("tune", f"up to date: {join_uri(run.uri, BEST)}")
        return best
    with follow_search(config.tune) as watch:
        search = run_search(config, watch, lambda text: console.out.print(f"  {text}"))
    record_stage(run, "tune", key, values=dict(search.winner.values))
    _show_search(search, config)
    console.stage("tune", f"{join_uri(run.uri, BEST)}, trials.parquet and {Path(PAGE).name}")
    return search.best


def _confirm(config: Config, best: Config) -> None:
    """Train the best config and the config as it stands with fresh seeds, and score each model once."""
    run, base = open_run(config), absolute(config)
    ledger = open_ledger(base, data_id(config))
    trials = ledger.trials(config.tune.trials)
    winner = best_of(trials)
    assert winner is not None, "a search without a winner is an error"
    if winner.number == 0:
        console.stage("confirm", "nothing to confirm: the config as it stands is the best")
        return
    outcomes = []
    for arm in confirmation.arms(base, absolute(best), winner):
        for seed in confirmation.seeds(config):
            console.stage("confirm", f"{arm.name}, trial {arm.trial}, seed {seed}")
            own = confirmation.confirmation_config(arm, ledger, seed)
            train(own)
            folder = score(own).rpartition("/")[2]
            result = read_score(open_run(own), folder)
            outcomes.append(confirmation.Outcome(arm.name, arm.trial, seed, run_uri(own), result))
    found = confirmation.compare(outcomes, config.score.bootstrap, config.score.seed)
    confirmation.write_confirmation(run, found)
    write_page(run, config, make_searcher(config), trials, dump_yaml(best), found)
    _show_confirmation(found)
    console.stage("confirm", f"{join_uri(run.uri, confirmation.PLACE)} and {Path(PAGE).name}")


def _show_search(search: Search, config: Config) -> None:
    trials = short(search_rows(config.tune, search.trials))
    rows = [list(trials[0])]
    for trial in trials:
        rows.append([f"{v:.4g}" if isinstance(v, float) else str(v) for v in trial.values()])
    console.show_table(f"Search over {', '.join(config.tune.space)}", rows)
    # A grid may have fewer points than were asked for.
    tried = config.tune.model_copy(update={"trials": len(search.trials)})
    console.out.print(f"  {budget(tried, search.trials)}; trial {search.winner.number} is the best")


def _show_confirmation(found: dict[str, Any]) -> None:
    interval = found["interval"]
    console.show_table(
        f"Trial {found['winner']} and the config as it stands, {len(found['seeds'])} seeds each, on "
        f"{interval['patients']} test patients",
        confirmation.table(found),
    )
    console.out.print(
        f"  difference of {interval['metric']}, 95 % interval over patients: {interval['low']:+.4f} – "
        f"{interval['high']:+.4f}"
    )
