"""Hyperparameter search with Ray Tune; each trial is the very training job, on its own workers.

Tune starts and stops the trials.  What they are, and which of them go on, is decided here, from the search's ledger
in the run: Tune's own notes are of no use to a later command, which may run on other nodes.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher as TuneSearcher

from bts_dist.compose import dump_yaml, with_overrides
from bts_dist.config import Config
from bts_dist.lease import own
from bts_dist.run import absolute, open_run
from bts_dist.train import check_fit
from bts_dist.wandb_search import mark_best, record_search
from cluster.fatal import FATAL
from cluster.resources import decided, max_concurrent, ray_cluster
from cluster.train_job import clear_ray_storage, fit_on_ray, ray_storage
from cluster.tune_course import Course, Watch
from cluster.tune_ledger import FOLDER, METRIC, Ledger, Trial, best_of, open_ledger, trial_config
from cluster.tune_results import search_rows, write_page, write_trials
from cluster.tune_search import make_searcher
from shards.errors import InputError
from shards.store import LocalStore

BEST = f"{FOLDER}/best.yaml"

DRIVER = {"CPU": 0, "memory": 2**20}
"""A trial's driver only waits.  Any share of a CPU for it would be missing for the last worker, for ever."""


@dataclass(frozen=True)
class Search:
    """What a search found."""

    best: Config
    winner: Trial
    trials: list[Trial]


def run_search(
    config: Config,
    watch: Watch = lambda trials, event: None,
    note: Callable[[str], None] = lambda _: None,
) -> Search:
    """Search ``tune.space`` for the highest ``val/dice/patient`` and write ``best.yaml``, ``trials.parquet`` and
    a page.

    A search that was interrupted goes on: trials that ended are not run again, others resume.  Trial 0 is the config
    as it stands, so a search never ends below it unnoticed.

    Raises:
        InputError: the space, data and cluster do not fit together, or another command works on this run.
        RuntimeError: every trial failed.
    """
    if config.tune.trials < 1:
        raise InputError("tune.trials is 0; say how many trials to run with --set tune.trials=8")
    searcher = make_searcher(config)
    data = check_fit(config, config.cluster.most)
    base = absolute(config)
    ledger = open_ledger(base, data.manifest.data_id)
    if config.tune.search == "grid" and searcher.space.grid_size() > config.tune.trials:
        note(
            f"the grid has {searcher.space.grid_size()} points; tune.trials={config.tune.trials} ends before"
        )
    with (
        own(open_run(config), note),
        ray_cluster(config.cluster),
        tempfile.TemporaryDirectory(prefix="bts-tune-") as scratch,
    ):
        limit = max_concurrent(config.cluster, config.tune.trials, config.tune.concurrent)
        course = Course(base, ledger, searcher, limit, watch)
        course.load()
        if course.wants_more():
            _run(course, scratch)
    return _conclude(config, course, note)


def trial(values: dict[str, Any], *, base: str, ledger: Ledger) -> None:
    """One trial's driver: train with the values proposed, reporting each epoch to Tune."""
    number = int(values["number"])
    try:
        config = trial_config(Config.model_validate_json(base), ledger, ledger.trial(number))
        fit_on_ray(config, None, [TuneReportCallback()])
    except FATAL as error:
        ledger.conclude(number, "failed", str(error))
    except RuntimeError as error:
        # More failures than allowed say nothing against the settings: the next command tries them again.
        ledger.conclude(number, "failed", str(error), final=False)


class _Proposals(TuneSearcher):
    """Gives Tune the next trial, when there is room for it."""

    def __init__(self, course: Course) -> None:
        super().__init__()
        self._course = course
        self._numbers: dict[str, int] = {}

    def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
        return True  # the space is ours

    def suggest(self, trial_id: str) -> Any:
        # Tune does not count the workers of a trial.
        if len(self._course.running) >= self._course.limit:
            return None
        number = self._course.next()
        if number is None:
            return TuneSearcher.FINISHED
        self._numbers[trial_id] = number
        return {"number": number}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        self._course.ended(self._numbers[trial_id], failed=error)

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()  # the ledger is what a later command reads

    def restore(self, checkpoint_path: str) -> None: ...


class _Stops(FIFOScheduler):
    """Stops the trials that are behind."""

    def __init__(self, course: Course) -> None:
        super().__init__()
        self._course = course

    def set_search_properties(self, metric: Any, mode: Any, **spec: Any) -> bool:
        return True

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> Any:
        if METRIC not in result:
            return TrialScheduler.CONTINUE
        goes_on = self._course.reported(int(trial.config["number"]), result)
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP


def _run(course: Course, scratch: str) -> None:
    # Decided once: a trial's driver may lie on a node that sees the cluster otherwise.
    config = course.config.model_copy(update={"cluster": decided(course.config.cluster)})
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(trial, base=config.model_dump_json(), ledger=course.ledger), DRIVER
        ),
        tune_config=tune.TuneConfig(
            num_samples=config.tune.trials, search_alg=_Proposals(course), scheduler=_Stops(course)
        ),
        run_config=tune.RunConfig(
            # A new name each time: Tune would go on with an old search of the same one.
            name=Path(scratch).name,
            storage_path=ray_storage(config, scratch),
            verbose=0,
            # A trial's driver lies on some node, which may be lost; its training goes on from the newest checkpoint.
            failure_config=tune.FailureConfig(max_failures=config.cluster.max_failures),
        ),
    )
    # Ctrl-C as elsewhere: Tune would take it for an end in good order, with the trials as they are.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    tuner.fit()
    # Trials that were stopped early have not done so themselves.
    for each in (config, *(trial_config(config, course.ledger, trial) for trial in course.trials.values())):
        clear_ray_storage(each)
    left = [trial.number for trial in course.trials.values() if not trial.ended]
    if left:
        raise RuntimeError(f"the search broke off with trials {left} under way; the same command goes on")


def _conclude(config: Config, course: Course, note: Callable[[str], None]) -> Search:
    trials = list(course.trials.values())
    winner = best_of(trials)
    if winner is None:
        errors = [trial.error for trial in trials if trial.error]
        raise RuntimeError(
            f"all {len(trials)} trials failed; the first said: {errors[0] if errors else 'nothing'}"
        )
    best = with_overrides(config, winner.values)
    run = open_run(config)
    write_trials(run, search_rows(config.tune, trials))
    write_page(run, config, course.searcher, trials, dump_yaml(best))
    run.put(BEST, dump_yaml(best).encode())
    _tell_wandb(course, winner, note)
    return Search(best, winner, trials)


def _tell_wandb(course: Course, winner: Trial, note: Callable[[str], None]) -> None:
    config, ledger = course.config, course.ledger
    place = ledger.store
    if config.track.wandb == "disabled":
        return
    grouped = with_overrides(config, {"track.group": ledger.group})
    with tempfile.TemporaryDirectory(prefix="bts-wandb-") as scratch:
        folder = place.root if isinstance(place, LocalStore) else Path(scratch)
        rows = search_rows(config.tune, list(course.trials.values()))
        reached = record_search(grouped, place, folder, rows, winner.number, note)
    mark_best(trial_config(config, ledger, winner), note, reached=reached)
