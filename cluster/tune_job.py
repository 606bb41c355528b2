"""Hyperparameter search with Ray Tune; each trial is the very training job, on its own workers."""

import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

from bts_dist.compose import dump_yaml, with_overrides
from bts_dist.config import Config, TuneConfig
from bts_dist.run import absolute, open_run, run_uri
from bts_dist.train import check_fit
from cluster.resources import max_concurrent, ray_cluster
from cluster.train_job import fit_on_ray, ray_storage
from shards.errors import InputError
from shards.store import join_uri

METRIC = "val/dice/patient"
BEST = "tune/best.yaml"
TRIALS = "tune/trials.json"
FIXED = frozenset({"train.epochs", "run.dir", "run.name", "tune.trials"})
"""Keys that each trial sets for itself."""

DRIVER = {"CPU": 0, "memory": 2**20}
"""A trial's driver only waits.  Any share of a CPU for it would be missing for the last worker, for ever."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Search:
    """What a search found."""

    best: Config
    trials: list[dict[str, Any]]


def parse_space(config: Config) -> dict[str, Any]:
    """The search space as Ray Tune's distributions.

    Raises:
        InputError: a distribution is unknown or malformed, or one of its values does not fit its key.
    """
    space: dict[str, Any] = {}
    values_of(config, config.tune.space)
    taken = sorted(set(config.tune.space) & FIXED)
    if taken:
        raise InputError(f"tune.space: {taken[0]} cannot be searched; every trial sets it (see tune.epochs)")
    for key, entry in config.tune.space.items():
        where = f"tune.space: {key}"
        if len(entry) != 1:
            raise InputError(f"{where} must have one of loguniform, uniform or choice; found {sorted(entry)}")
        (kind, values), *_ = entry.items()
        if not isinstance(values, list) or not values:
            raise InputError(f"{where}.{kind} must be a list of values; found {values!r}")
        match kind:
            case "choice":
                space[key] = tune.choice(values)
            case "loguniform" | "uniform":
                numbers = all(isinstance(v, int | float) for v in values)
                if len(values) != 2 or not numbers or not values[0] < values[1]:
                    raise InputError(f"{where}.{kind} must be [low, high] with low < high; found {values}")
                if kind == "loguniform" and values[0] <= 0:
                    raise InputError(f"{where}.loguniform needs low > 0; found {values[0]}")
                space[key] = (tune.loguniform if kind == "loguniform" else tune.uniform)(*values)
            case _:
                raise InputError(f"{where}: {kind!r} is not one of loguniform, uniform, choice")
        for value in values:
            trial_config(config, {key: value}, "check")
    return space


def trial_config(config: Config, values: dict[str, Any], name: str) -> Config:
    """The config of one trial: the searched values, fewer epochs, and a place below the run's own."""
    fixed = {
        "train.epochs": config.tune.epochs,
        "run.dir": join_uri(run_uri(config) if config.run.name else config.run.dir, "tune"),
        "run.name": name,
        "tune.trials": 0,
    }
    assert fixed.keys() == FIXED
    return with_overrides(config, {**values, **fixed})


def run_search(config: Config, progress: Progress | None = None) -> Search:
    """Search ``tune.space`` for the highest ``val/dice/patient`` and write ``best.yaml`` and ``trials.json``.

    Trial 0 is the config as it stands, so a search never ends below it unnoticed.

    Raises:
        InputError: the space, data and cluster do not fit together.
        RuntimeError: every trial failed.
    """
    if config.tune.trials < 1:
        raise InputError("tune.trials is 0; say how many trials to run with --set tune.trials=8")
    space = parse_space(config)
    check_fit(config, config.cluster.workers)
    with ray_cluster(config.cluster), tempfile.TemporaryDirectory(prefix="bts-tune-") as scratch:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(trial, base=absolute(config).model_dump_json()), DRIVER),
            param_space=space,
            tune_config=tune.TuneConfig(
                metric=METRIC,
                mode="max",
                num_samples=config.tune.trials,
                search_alg=BasicVariantGenerator(
                    points_to_evaluate=[values_of(config, config.tune.space)],
                    random_state=config.tune.seed,
                    # Tune does not count the workers of a trial, nor heed its own limit with this generator.
                    max_concurrent=max_concurrent(config.cluster),
                ),
                scheduler=_scheduler(config.tune),
            ),
            run_config=tune.RunConfig(
                # A new name each time: Tune would go on with an old search of the same one.
                name=Path(scratch).name,
                storage_path=ray_storage(config, scratch),
                verbose=0,
                callbacks=[_Counter(progress, config.tune.trials)],
            ),
        )
        results = tuner.fit()
    return _conclude(config, results)


def trial(values: dict[str, Any], *, base: str) -> None:
    """One trial's driver: train with the searched values, reporting each epoch to Tune."""
    name = tune.get_context().get_trial_name()
    config = trial_config(Config.model_validate_json(base), values, name)
    fit_on_ray(config, None, [TuneReportCallback()])


def values_of(config: Config, keys: Iterable[str]) -> dict[str, Any]:
    """The config's own values of the searched keys.

    Raises:
        InputError: a searched key is no key of the config.
    """
    point: dict[str, Any] = {}
    tree = config.model_dump(mode="json")
    for key in keys:
        value: Any = tree
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                raise InputError(
                    f"tune.space: {key} is not a key of this config; the search starts from the config's own value"
                )
            value = value[part]
        point[key] = value
    return point


class _Counter(tune.Callback):
    """Counts finished trials for a progress bar."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._count()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._count()

    def __getstate__(self) -> dict[str, Any]:
        # Tune saves its callbacks with the search; a progress bar belongs to this process alone.
        return {**self.__dict__, "_progress": None}

    def _count(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)


def _scheduler(config: TuneConfig) -> ASHAScheduler:
    """Asynchronous successive halving (Li et al., MLSys 2020) over epochs."""
    return ASHAScheduler(
        time_attr="epoch",
        max_t=config.epochs,
        grace_period=min(config.grace_epochs, config.epochs),
        reduction_factor=config.reduction,
    )


def _conclude(config: Config, results: Any) -> Search:
    trials = []
    for number, result in enumerate(results):
        history = [] if result.metrics_dataframe is None else result.metrics_dataframe[METRIC].tolist()
        status = (
            "failed" if result.error else "stopped early" if len(history) < config.tune.epochs else "finished"
        )
        trials.append(
            {
                "trial": number,
                **{key: result.config[key] for key in config.tune.space},
                METRIC: max(history) if history else None,
                "epochs": len(history),
                "status": status,
            }
        )
    ranked = [t for t in trials if t[METRIC] is not None and t["status"] != "failed"]
    if not ranked:
        errors = [str(r.error).strip().splitlines()[-1] for r in results if r.error]
        raise RuntimeError(
            f"all {len(trials)} trials failed; the first said: {errors[0] if errors else 'nothing'}"
        )
    winner = max(ranked, key=lambda t: float(t[METRIC]))
    best = with_overrides(config, {key: winner[key] for key in config.tune.space})
    run = open_run(config)
    run.put(TRIALS, json.dumps(trials, indent=1).encode())
    run.put(BEST, dump_yaml(best).encode())
    return Search(best, trials)
