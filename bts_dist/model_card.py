"""The model card: intended use, data, results and limits of an export, from what checkpoint and scores know.

After Mitchell et al., Model Cards for Model Reporting (FAT* 2019).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, get_args

from jinja2 import Environment, StrictUndefined

from bts_dist.config import Config
from bts_dist.ensemble import num_networks
from bts_dist.model import Model, ModelPlace, title
from bts_dist.parity import Parity, ParitySlices
from bts_dist.run import training_recipe
from bts_dist.score import read_score
from bts_dist.unet import count_parameters
from shards.config import StoreConfig
from shards.errors import InputError
from shards.manifest import Manifest
from shards.plan import SPLITS, Split
from shards.reader import PackedData, TrainingSplit
from shards.store import MissingObject, ObjectStore, open_store
from shards.verify import SEQUENCES

CARD = "MODEL_CARD.md"

_PURPOSE = {
    "train": "moving the weights",
    "val": "choosing epoch and way of predicting",
    "test": "scoring, nothing else",
}


@dataclass(frozen=True)
class CardFacts:
    """Where the figures of a card come from."""

    place: ModelPlace
    model: Model
    config: Config
    """Says where the data set lies."""
    slices: ParitySlices
    parity: Mapping[str, Parity]
    limit: float


def model_card(facts: CardFacts) -> str:
    """The card as Markdown."""
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    text = files("bts_dist").joinpath("model_card.md.j2").read_text(encoding="utf-8")
    return environment.from_string(text).render(_content(facts)).rstrip("\n") + "\n"


def is_validated(model: Model) -> bool:
    """Whether these weights are those that a validation saw: saved at the end of an epoch, not within one.

    Of folds together it is asked of each fold's.
    """
    if model.folds:
        return all(is_validated(own) for _, own in model.folds)
    return model.progress.epoch > 0 and model.progress.loss_sum == 0


def scores_of(run: ObjectStore, place: ModelPlace, model: Model) -> list[dict[str, Any]]:
    """Every ``score.json`` of the run that is of this checkpoint as it predicts now, that of its own data set first."""
    folders = sorted({e.key.split("/")[0] for e in run.list("score") if e.key.endswith("/score.json")})
    found = [read_score(run, folder) for folder in folders]
    own = title(place, model)
    # Older scores do not say how they predicted, and were made as validated.
    way = model.inference.to_json()
    return [s for s in found if s["checkpoint"] == own and s.get("inference", way) == way]


def out_of_fold_score(run: ObjectStore, model: Model) -> dict[str, Any] | None:
    """The score of a cross-validation in which each patient was scored by the one of these models that never saw it.

    None where there is none, or it is of other models or of other ways of predicting.
    """
    try:
        score = read_score(run)
    except MissingObject:
        return None
    entries = [(each["checkpoint"], each.get("inference")) for each in score.get("folds", [])]
    own = [(title(place, each), each.inference.to_json()) for place, each in model.folds]
    return score if entries and entries == own else None


def _content(facts: CardFacts) -> dict[str, Any]:
    model, config = facts.model, facts.model.config
    progress, validated = model.progress, is_validated(model)
    run = open_store(facts.place.run, facts.config.store)
    return {
        "run": facts.place.run.rstrip("/").rpartition("/")[2],
        "checkpoint": facts.place.name,
        "sequences": SEQUENCES,
        "model": config.model,
        "parameters": count_parameters(model.network),
        "image_size": config.data.image_size,
        "step": 2 ** (config.model.depth - 1),
        "mirror": model.inference.mirror,
        "members": num_networks(model.network),
        "components": model.inference.keep,
        "choices": (model.inference.chosen or {}).get("rows", []),
        "weights": "moving average of the steps"
        if config.optim.ema is not None
        else "as the last step left them",
        "threshold": model.inference.threshold,
        "validated": validated,
        "validation": progress.val_dice[-1] if validated and not model.folds else None,
        "folds": [_fold(place, own) for place, own in model.folds],
        "progress": progress,
        "recipe": training_recipe(config),
        **_data(facts),
        "out_of_fold": _score(found, found["data"]["data id"])
        if (found := out_of_fold_score(run, model)) is not None
        else None,
        "scores": [_score(each, progress.data_id) for each in scores_of(run, facts.place, model)],
        "parity": facts.parity,
        "parity_slices": facts.slices.description,
        "real": facts.slices.real,
        "limit": facts.limit,
    }


def _data(facts: CardFacts) -> dict[str, Any]:
    """What the data set says of itself, where it can be read and is the one the model was trained on.

    Of folds together no split is told, since each has its own.
    """
    unknown = {"splits": [], "institutions": [], "height": 0, "width": 0}
    models = [own for _, own in facts.model.folds]
    wanted = [(own.config.data.shards, own.progress.data_id) for own in models] or [
        (facts.config.data.shards, facts.model.progress.data_id)
    ]
    sets = [_open(shards, data_id, facts.config.store) for shards, data_id in wanted]
    known = [data for data in sets if data is not None]
    if len(known) < len(sets):
        return unknown
    manifest = known[0].manifest
    seen = {
        name
        for data in known
        for split in get_args(TrainingSplit)
        for name in data.training(split).index.institution
    }
    return {
        "splits": [] if models else [_split(manifest, split) for split in SPLITS],
        "institutions": sorted(seen),
        "height": manifest.height,
        "width": manifest.width,
    }


def _split(manifest: Manifest, split: Split) -> dict[str, Any]:
    return {
        "name": split,
        "patients": len(manifest.patients[split]),
        "slices": manifest.num_samples(split),
        "purpose": _PURPOSE[split],
    }


def _open(shards: str, data_id: str, store: StoreConfig) -> PackedData | None:
    """The data set at ``shards``, where it can be read and is the one of ``data_id``."""
    try:
        data = PackedData(shards, store)
    except InputError:
        return None
    return data if data.manifest.data_id == data_id else None


def _fold(place: ModelPlace, model: Model) -> dict[str, Any]:
    progress = model.progress
    return {
        "name": place.run.rstrip("/").rpartition("/")[2],
        "checkpoint": title(place, model),
        "step": progress.step,
        "data_id": progress.data_id,
        "patients": len(progress.patients),
        "validation": progress.val_dice[-1] if is_validated(model) else None,
        "predicts": model.inference.describe(),
    }


def _score(score: dict[str, Any], own_data_id: str) -> dict[str, Any]:
    patients = score["patients"]
    dices = [patient["dice"] for patient in patients]
    return {
        "own": score["data"]["data id"] == own_data_id,
        "data_id": score["data"]["data id"],
        "leak": score.get("leak"),
        "patients": len(patients),
        "slices": score["data"]["slices"],
        "threshold": score["threshold"] if isinstance(score["threshold"], float) else "each fold's own",
        "rows": [{"name": name, **row} for name, row in score["metrics"].items()],
        "lowest": min(dices),
        "highest": max(dices),
        "below_half": sum(value < 0.5 for value in dices),
        "missed": sum(row["tp"] == 0 and row["fn"] > 0 for row in patients),
    }
