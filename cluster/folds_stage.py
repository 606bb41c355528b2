"""Cross-validation as a stage: every fold's job, then one table of all patients."""

from contextlib import nullcontext
from typing import Any

from bts_dist.config import Config
from bts_dist.model import checkpoints_of, find_model
from bts_dist.pseudonyms import check_key
from bts_dist.run import absolute, open_run, run_uri
from bts_dist.wandb_stages import record_score
from cluster import console, stages
from cluster.folds import fold_config, num_folds, run_folds
from cluster.resources import ray_cluster
from cluster.score_job import run_out_of_fold
from shards.store import open_store


def cross_validate(config: Config) -> str:
    """Do the main job for each fold, score every patient by the model that never saw it, and give the page's place."""
    check_key(config, open_run(config))
    with ray_cluster(config.cluster) if config.cluster.runtime == "ray" else nullcontext():
        run_folds(config, lambda fold, line: console.out.print(f"fold {fold}  {line}", markup=False))
        own = [fold_config(absolute(config), fold) for fold in range(num_folds(config))]
        folds = [(find_model(run_uri(each), each.store), each) for each in own]
        with console.progress("score") as update:
            location, result = run_out_of_fold(folds, config, update)
    parts = [each for place, _ in folds for each in checkpoints_of(place, config.store)]
    models = [(open_store(each.run, config.store), each.name) for each in parts]
    record_score(config, open_run(config), location.rpartition("/")[2], result, models, None, stages.say)
    stages.show_scores(result)
    _show_folds(result)
    num = len(result["patients"])
    console.stage("score", f"{location}/score.json and patients.csv: {num} patients, each out of its fold")
    return stages.report(run_uri(config), config)


def _show_folds(result: dict[str, Any]) -> None:
    over = result["over_folds"]
    rows = [("fold", "patients", *over, "checkpoint", "run")]
    for fold in result["folds"]:
        figures = [f"{fold[name]:.4f}" for name in over]
        rows.append(
            (str(fold["fold"]), str(len(fold["patients"])), *figures, fold["checkpoint"], fold["run"])
        )
    spread = [f"{each['mean']:.4f} ± {each['std']:.4f}" for each in over.values()]
    rows.append(("mean ± SD", "", *spread, "", ""))
    console.show_table("Fold by fold", rows)
