"""Scoring, and choosing how to predict, as jobs: patients dealt out over Ray tasks, or done in this process."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bts_dist.choosing import run_choosing
from bts_dist.config import Config
from bts_dist.inference import Inference
from bts_dist.model import ModelPlace
from bts_dist.out_of_fold import score_out_of_fold
from bts_dist.run import absolute, open_run
from bts_dist.score import run_score
from cluster.ray_map import ray_map
from cluster.resources import decided, ray_cluster
from shards.location import absolute_uri

Progress = Callable[[int, int], None]


def run_scoring(
    place: ModelPlace, config: Config, progress: Progress | None = None
) -> tuple[str, dict[str, Any]]:
    """Score a model on the test patients of ``data.shards``.  Raises what ``bts_dist.score`` raises.

    Returns the location of the results and the content of ``score.json``.
    """
    config = absolute(config)
    with _workers(config) as (config, workers, parallel):
        return run_score(_absolute(place), config, workers, parallel, progress)


def run_out_of_fold(
    folds: Sequence[tuple[ModelPlace, Config]], config: Config, progress: Progress | None = None
) -> tuple[str, dict[str, Any]]:
    """Score all folds of a cross-validation as one job, into the run of ``config``.  As ``score_out_of_fold``."""
    with _workers(config) as (config, workers, parallel):
        exams = [
            (_absolute(place), absolute(own.model_copy(update={"cluster": config.cluster})))
            for place, own in folds
        ]
        return score_out_of_fold(exams, open_run(absolute(config)), workers, parallel, progress)


def run_choice(place: ModelPlace, config: Config, progress: Progress | None = None) -> Inference:
    """Choose on validation patients how a checkpoint predicts.  Raises what ``bts_dist.choosing`` raises."""
    config = absolute(config)
    with _workers(config) as (config, workers, parallel):
        return run_choosing(_absolute(place), config, workers, parallel, progress)


@contextmanager
def _workers(config: Config) -> Iterator[tuple[Config, int, Any]]:
    """The config as decided for this cluster, how many tasks run side by side, and what runs them."""
    if config.cluster.runtime != "ray":
        yield config, 1, map
        return
    with ray_cluster(config.cluster):
        # A task uses one thread, whatever a training's worker has, and the GPU that such a worker has.
        cluster = decided(config.cluster)
        cpus, gpus = min(cluster.cpus_per_worker, 1.0), cluster.gpus_per_worker or 0
        yield (
            config.model_copy(update={"cluster": cluster}),
            cluster.most,
            ray_map(num_cpus=cpus, num_gpus=gpus),
        )


def _absolute(place: ModelPlace) -> ModelPlace:
    return ModelPlace(absolute_uri(place.run), place.name)
