"""Where a run lies and what it is called.

A run is a prefix ``<run.dir>/<run.name>`` with ``checkpoints/``, ``metrics.jsonl``, ``wandb/``, ``tune/``,
``score/``, ``report.html`` and ``stages/``, which records what each stage was made from.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from bts_dist.checkpoint import FACTS, fetch_newest, names, read_config
from bts_dist.compose import config_hash, with_overrides
from bts_dist.config import Config
from shards.cache import cache_folder
from shards.errors import InputError
from shards.location import absolute_uri
from shards.store import LocalStore, MissingObject, ObjectStore, join_uri, open_store

_RECIPE = ("model", "loss", "optim", "schedule", "augment", "train", "split")
"""Sections that decide which weights come out."""
_RECIPE_OF_DATA = ("image_size", "window_shards")


_MAY_CHANGE = {
    f"train.{k}"
    for k in (
        "epochs",
        "early_stop",
        "threads",
        "checkpoint_steps",
        "checkpoint_minutes",
        "keep_checkpoints",
        "log_every",
    )
}
"""Keys of the recipe that a resumed run may change: how long it trains and how it is run and recorded."""


def named(config: Config) -> Config:
    """The config with ``run.name`` filled in: from a hash of all that shapes the result, when it is null."""
    if config.run.name is not None:
        return config
    shape = {
        **training_recipe(config),
        "source": config.data.source,
        "tune": config.tune.model_dump(mode="json"),
    }
    return with_overrides(config, {"run.name": f"run-{config_hash(shape)}"})


def absolute(config: Config) -> Config:
    """The config with local paths made absolute, for workers that run in other folders."""
    places = {"data.source": config.data.source, "data.shards": config.data.shards, "run.dir": config.run.dir}
    ensemble = [absolute_uri(uri) for uri in config.score.ensemble]
    return with_overrides(
        config, {**{key: absolute_uri(uri) for key, uri in places.items()}, "score.ensemble": ensemble}
    )


def run_uri(config: Config) -> str:
    assert config.run.name is not None, "named() comes first"
    return join_uri(config.run.dir, config.run.name)


def open_run(config: Config) -> ObjectStore:
    return open_store(run_uri(config), config.store)


def workspace(run: ObjectStore, config: Config) -> Path:
    """A local folder for what must be written to a file system: the run itself when it is local."""
    if isinstance(run, LocalStore):
        return run.root
    return cache_folder(config.store) / "runs" / hashlib.sha256(run.uri.encode()).hexdigest()[:16]


def training_recipe(config: Config) -> dict[str, Any]:
    """The settings that decide which weights come out, as a tree of plain values."""
    tree: dict[str, Any] = config.model_dump(mode="json")
    return {name: tree[name] for name in _RECIPE} | {
        "data": {name: tree["data"][name] for name in _RECIPE_OF_DATA}
    }


def check_same_recipe(run: ObjectStore, config: Config, scratch: Path) -> None:
    """Refuse to resume a run under other settings; training longer is allowed.

    Raises:
        InputError: it names the keys that differ.
    """
    if not names(run):
        return
    folder = fetch_newest(run, scratch, lambda _: None, FACTS)
    if folder is None:
        return
    before, now = _flat(training_recipe(read_config(folder))), _flat(training_recipe(config))
    differing = {k for k in before.keys() | now.keys() if before.get(k) != now.get(k)} - _MAY_CHANGE
    if config.model.norm != "batch":
        differing.discard("train.micro_batch")  # it divides what is added up, and normalises nothing
    if differing:
        listed = "\n".join(f"  {k}: {before.get(k)} before, {now.get(k)} now" for k in sorted(differing))
        raise InputError(
            f"{run.uri} was trained with other settings:\n{listed}\n"
            "Give this run another name with --set run.name=…, or set those keys back"
        )


def stage_record(run: ObjectStore, stage: str) -> dict[str, Any] | None:
    """What ``stage`` was last made from and gave, or None."""
    try:
        record: dict[str, Any] = json.loads(run.get(f"stages/{stage}.json"))
    except (MissingObject, json.JSONDecodeError):
        return None
    return record


def record_stage(run: ObjectStore, stage: str, key: str, **result: Any) -> None:
    run.put(f"stages/{stage}.json", json.dumps({"key": key, **result}, indent=1).encode())


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
