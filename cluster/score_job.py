"""Scoring as a job: test patients dealt out over Ray tasks, or scored in this process."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bts_dist.config import Config
from bts_dist.run import absolute
from bts_dist.score import ModelPlace, run_score
from cluster.ray_map import ray_map
from cluster.resources import ray_cluster

Progress = Callable[[int, int], None]


def run_scoring(
    place: ModelPlace, config: Config, progress: Progress | None = None
) -> tuple[str, dict[str, Any]]:
    """Score a model on the test patients of ``data.shards``.  Raises what ``bts_dist.score`` raises.

    Returns the location of the results and the content of ``score.json``.
    """
    config, workers = absolute(config), config.cluster.most
    if "://" not in place.run:
        place = ModelPlace(str(Path(place.run).resolve()), place.name)
    if config.cluster.runtime != "ray":
        return run_score(place, config, 1, map, progress)
    with ray_cluster(config.cluster):
        cpus = min(config.cluster.cpus_per_worker, float(os.cpu_count() or 1))
        return run_score(place, config, workers, ray_map(num_cpus=cpus), progress)
