"""The main job: every stage in its order, once, or for each fold of a cross-validation."""

from contextlib import nullcontext

from bts_dist.config import Config
from bts_dist.run import run_uri
from cluster import choice_stage, folds_stage, search_stage, stages
from cluster.resources import ray_cluster


def run(config: Config) -> str:
    """Verify, pack, tune, train, score and report; the report's location.

    Raises:
        InputError: a stage refuses what it is given.
        RuntimeError: a stage failed.
    """
    if config.split.kind == "patient" and config.split.fold == "all":
        return folds_stage.cross_validate(config)
    # Bad input shows before a cluster is started.
    source = stages.verify(config)
    with ray_cluster(config.cluster) if config.cluster.runtime == "ray" else nullcontext():
        stages.pack(config, source)
        best = search_stage.tune(config) if config.tune.trials else config
        choice_stage.check(best)
        stages.train(best)
        choice_stage.choose(best)
        stages.score(best)
        return stages.report(run_uri(config), config)
