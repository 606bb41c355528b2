"""What W&B is told of the stages beside training: a run for each, in the group of the run that they belong to.

A stage's W&B id follows from the run's, so a stage that is done again goes on with its W&B run and shows its newest
result.
"""

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.pseudonyms import Rename, renaming
from bts_dist.run import open_run
from bts_dist.track import METRICS, wandb_id
from bts_dist.wandb_artifacts import (
    DataReference,
    ModelReference,
    ScoreReference,
    log_artifact,
    use_artifact,
)
from bts_dist.wandb_process import limited
from bts_dist.wandb_session import Note, table_file
from bts_dist.wandb_stage_run import stage_run
from shards.store import LocalStore, ObjectStore, open_store

_TELLS_WHO = ("institution",)
"""Columns of the table of patients that help to guess who someone is."""


def record_pack(config: Config, note: Note = lambda _: None) -> None:
    """Give W&B the data set that was packed for a run."""
    if config.track.wandb == "disabled" or config.run.name is None:
        return  # `bts pack` alone belongs to no run: the training that uses its data names them
    data = DataReference(open_store(config.data.shards, config.store))
    run = open_run(config)
    with _stage_run(config, run, "pack", f"{wandb_id(run)}-pack", note) as (wandb_run, step):
        facts = data.describe().facts
        counts = {f"{name}/{split}": n for name in ("patients", "slices") for split, n in facts[name].items()}
        with limited():
            wandb_run.log({**counts, "shards": facts["shards"], "bytes": facts["bytes"]}, step=step)
        log_artifact(wandb_run, data)


def record_score(
    config: Config,
    run: ObjectStore,
    folder: str,
    result: Mapping[str, Any],
    models: Sequence[tuple[ObjectStore, str]],
    data: ObjectStore | None,
    note: Note = lambda _: None,
) -> None:
    """Keep a score's figures as a row beside it, and give W&B these, the table of patients and the lineage.

    ``models`` are the checkpoints that were scored, each as its run and name; ``data`` is the data set with the test
    patients, None for a cross-validation, where each fold has one and the models' runs name them.
    """
    figures = {name: row["mean"] for name, row in result["metrics"].items() if row["mean"] is not None}
    marks = {"leak": result["leak"]} if "leak" in result else {}
    row = {"kind": "score", "time": round(time.time(), 3), **marks, **figures}
    run.put(f"{folder}/{METRICS}", (json.dumps(row) + "\n").encode())
    if config.track.wandb == "disabled":
        return
    import wandb

    own = wandb_id(run)
    rename = renaming(config, run)
    with _stage_run(config, run, "score", f"{own}-{folder}", note) as (wandb_run, step):
        columns, rows = patient_table(result["patients"], rename, hide=config.track.pseudonymise)
        table = wandb.Table(columns=columns, data=rows, allow_mixed_types=True)
        with limited():
            shown = table_file(wandb_run, "patients", table, step)
            wandb_run.log({**figures, "patients": shown}, step=step)
            if "leak" in result:
                wandb_run.summary["leak"] = result["leak"]
                wandb_run.tags = (*(wandb_run.tags or ()), "leak")
            for name, found in result["metrics"].items():
                wandb_run.summary.update({f"{name}/{bound}": found[bound] for bound in ("low", "high")})
        if data is not None:
            use_artifact(wandb_run, DataReference(data))
        for store, name in models:
            use_artifact(wandb_run, ModelReference(store, wandb_id(store), name))
        log_artifact(wandb_run, ScoreReference(run, own, folder))


def patient_table(
    patients: Sequence[Mapping[str, Any]], rename: Rename, *, hide: bool
) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the table of patients; with ``hide`` without what tells who someone is."""
    columns = [name for name in patients[0] if not (hide and name in _TELLS_WHO)]
    rows = [[rename(row[name]) if name == "patient" else row[name] for name in columns] for row in patients]
    return columns, rows


@contextmanager
def _stage_run(
    config: Config, run: ObjectStore, stage: str, own_id: str, note: Note
) -> Iterator[tuple[Any, int]]:
    """A W&B run of a stage, and the step to log at: one more each time that the stage is done."""
    run_name = run.uri.rpartition("/")[2]
    # A model of another run may be scored: the score belongs to that one.
    own = with_overrides(config, {"track.job_type": stage, "track.group": config.track.group or run_name})
    with tempfile.TemporaryDirectory(prefix="bts-wandb-") as scratch:
        folder = run.root if isinstance(run, LocalStore) else Path(scratch)
        with stage_run(own, run, folder, own_id, f"{run_name} {stage}", note) as begun:
            yield begun
