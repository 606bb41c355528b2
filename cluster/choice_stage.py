"""Choosing as a stage, after training: how the run's best checkpoint predicts, decided on the validation patients."""

import os
from typing import Any

from bts_dist.choosing import find_further, find_members
from bts_dist.compose import config_hash
from bts_dist.config import Config
from bts_dist.inference import Inference, inference_bytes
from bts_dist.model import checkpoint_id, find_model
from bts_dist.run import absolute, open_run, record_stage, run_uri, stage_record
from cluster import console
from cluster.score_job import run_choice
from cluster.stages import data_id


def choose(config: Config) -> None:
    """Choose for the run's best checkpoint, unless that was done with the same settings.

    Raises:
        InputError: as ``bts_dist.choosing.run_choosing``.
    """
    if config.cluster.runtime == "torchrun" and os.environ["RANK"] != "0":
        return
    run, place = open_run(config), find_model(run_uri(config), config.store)
    key = config_hash(
        {
            # Training on, or again, leaves other checkpoints to choose from.
            "checkpoints": [checkpoint_id(each, config.store) for each in find_members(place, config)],
            "data_id": data_id(config),
            "choices": list(config.score.choices),
            "ensemble": list(absolute(config).score.ensemble),
            "mirror": config.score.mirror,
            "bootstrap": [config.score.bootstrap, config.score.seed],
        },
        length=16,
    )
    record = stage_record(run, "choose")
    if record is not None and record["key"] == key and inference_bytes(run, place.name):
        console.stage("choose", f"up to date: {record['found']}")
        return
    with console.progress("choose") as update:
        found = run_choice(place, config, update)
    record_stage(run, "choose", key, found=found.describe())
    _show(found)


def check(config: Config) -> None:
    """Refuse before the training what choosing would refuse after it.

    Raises:
        InputError: as ``bts_dist.choosing.find_further``.
    """
    if config.score.ensemble:
        find_further(config, config, data_id(config))


def _show(found: Inference) -> None:
    tried: dict[str, Any] = found.chosen or {}
    table = [("choice", "from", "to", "dice/patient", "gain", "95 % interval", "taken")]
    table.append(("start", tried["start"]["label"], "", f"{tried['start']['dice/patient']:.4f}", "", "", ""))
    for row in tried["rows"]:
        interval = "–" if row["low"] is None else f"{row['low']:+.4f} – {row['high']:+.4f}"
        figures = f"{row['dice/patient']:.4f}", f"{row['gain']:+.4f}", interval
        table.append((row["choice"], row["from"], row["to"], *figures, "yes" if row["taken"] else "no"))
    console.show_table(f"Choices on {tried['patients']} validation patients", table)
    console.stage("choose", f"{found.describe()}: val dice/patient {tried['dice/patient']:.4f}")
