"""A trained model: where it lies, and what it takes to predict with it in the way that was chosen for it."""

import hashlib
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bts_dist import checkpoint
from bts_dist.checkpoint import Progress
from bts_dist.config import Config
from bts_dist.ensemble import ensemble, networks_of
from bts_dist.inference import Inference, Member, inference_bytes, read_inference
from bts_dist.unet import make_unet
from shards.config import HoldoutSplit, StoreConfig
from shards.errors import InputError
from shards.location import absolute_uri
from shards.store import MissingObject, ObjectStore, join_uri, open_store

FOLDS = "folds"
"""Folder of a cross-validation's runs, and the name of the model that all of them make together."""


@dataclass(frozen=True)
class Model:
    """A trained model, ready to predict."""

    network: nn.Module
    """One network, or the ``Ensemble`` of several."""
    config: Config
    progress: Progress
    device: torch.device
    inference: Inference
    folds: tuple[tuple["ModelPlace", "Model"], ...] = ()
    """Of a cross-validation's models together each fold's own, in the order of the folds."""


def as_validated(progress: Progress, config: Config) -> Inference:
    """How a checkpoint predicts for which nothing was chosen since: as it did in validation."""
    return Inference(progress.threshold, config.score.mirror)


@dataclass(frozen=True)
class ModelPlace:
    """Where a model lies: the run's location, and a checkpoint's name or ``FOLDS``."""

    run: str
    name: str

    @property
    def uri(self) -> str:
        """What ``find_model`` takes for it."""
        return self.run if self.name == FOLDS else join_uri(self.run, checkpoint.FOLDER, self.name)


def find_model(uri: str, store: StoreConfig) -> ModelPlace:
    """The model meant by ``uri``: a checkpoint itself, a run's best one, or a cross-validation's of all folds.

    Raises:
        InputError: there is no whole checkpoint.
    """
    uri = uri.rstrip("/")
    parent, _, name = uri.rpartition(f"/{checkpoint.FOLDER}/")
    if parent and checkpoint.is_name(name):
        return ModelPlace(parent, name)
    run = open_store(uri, store)
    with tempfile.TemporaryDirectory() as scratch:
        newest = checkpoint.fetch_newest(run, Path(scratch), lambda _: None, checkpoint.MODEL)
        if newest is not None:
            return ModelPlace(uri, checkpoint.read_progress(newest).best or newest.name)
    if _fold_runs(run):
        return ModelPlace(uri, FOLDS)
    raise InputError(f"{uri} holds no whole checkpoint; train one with `bts train`, or name another run")


def load_model(place: ModelPlace, store: StoreConfig, device: torch.device) -> Model:
    """Load a model with all its members, and the way to predict that was chosen for it.

    Raises:
        InputError: a checkpoint is missing, damaged, or of another architecture than its config; what was chosen is
            damaged; or members do not fit each other.
    """
    run = open_store(place.run, store)
    if place.name == FOLDS:
        return _load_folds(run, store, device)
    model = load_checkpoint(place, store, device)
    chosen = read_inference(run, place.name, checkpoint_id(place, store))
    if chosen is None:
        return model
    members = [_load_member(place, member, store, device) for member in chosen.members]
    check_alike(model.config, members)
    network = ensemble([model.network, *(member.network for member in members)])
    return replace(model, network=network.eval(), config=_as_chosen(model.config, chosen), inference=chosen)


def load_checkpoint(place: ModelPlace, store: StoreConfig, device: torch.device) -> Model:
    """Load the weights of one checkpoint that were validated: the moving average where there is one.

    They predict as validation did.  Raises ``InputError`` as ``load_model``.
    """
    with tempfile.TemporaryDirectory() as scratch:
        try:
            run, folder = open_store(place.run, store), Path(scratch) / place.name
            checkpoint.fetch(run, place.name, folder, checkpoint.MODEL)
        except ValueError as error:
            raise InputError(f"{place.uri} is not a whole checkpoint: {error}") from error
        config = checkpoint.read_config(folder)
        network = make_unet(config.model, device)
        ema = folder / "ema.safetensors"
        checkpoint.load_weights(network, ema if ema.is_file() else folder / "model.safetensors")
        progress = checkpoint.read_progress(folder)
    return Model(network.eval(), config, progress, device, as_validated(progress, config))


def checkpoints_of(place: ModelPlace, store: StoreConfig) -> list[ModelPlace]:
    """The checkpoints that a model is made of.  Raises ``InputError`` as ``load_model``, without a look at weights."""
    run = open_store(place.run, store)
    if place.name == FOLDS:
        return [each for uri in _fold_runs(run) for each in checkpoints_of(find_model(uri, store), store)]
    chosen = read_inference(run, place.name, checkpoint_id(place, store))
    return [place, *(member_place(place, member.uri) for member in (chosen.members if chosen else ()))]


def member_place(place: ModelPlace, uri: str) -> ModelPlace:
    """Where a member of the model at ``place`` lies; one of the same run is named without it."""
    parent, _, name = uri.rpartition(f"{checkpoint.FOLDER}/")
    return ModelPlace(parent.rstrip("/") or place.run, name)


def _load_member(place: ModelPlace, member: Member, store: StoreConfig, device: torch.device) -> Model:
    found = member_place(place, member.uri)
    try:
        own = checkpoint_id(found, store)
    except InputError as error:
        # A run keeps its best checkpoints and its newest; this one may have trained on since.
        raise InputError(
            f"{error.args[0].partition(' (')[0]} any more, and {place.uri} was chosen to be averaged with it; bring it "
            "back, or give the run's `bts train` command again, which chooses anew"
        ) from error
    if own != member.id:
        # Another training may lie there now, which has seen who knows whom.
        raise InputError(
            f"{found.uri} is another checkpoint than the one that {place.uri} was chosen to be averaged with; give "
            "the run's `bts train` command again, which chooses anew"
        )
    return load_checkpoint(found, store, device)


def check_alike(config: Config, members: Sequence[Model]) -> None:
    """Raise ``InputError`` where members of an ensemble differ from ``config`` in network or in what it sees."""
    for member in members:
        for key, one, other in (
            ("model", config.model, member.config.model),
            ("data.image_size", config.data.image_size, member.config.data.image_size),
        ):
            if one != other:
                raise InputError(
                    f"members of an ensemble must share {key}; found {one} and {other}; leave one of them out"
                )


def title(place: ModelPlace, model: Model) -> str:
    """The model in words, for the head of a table."""
    if place.name == FOLDS:
        assert isinstance(model.config.split, HoldoutSplit)
        return f"{model.config.split.folds} folds' models together"
    more = len(model.inference.members)
    others = f" and {more} more" if more else ""
    return f"{place.name} (epoch {model.progress.epoch}){others}"


def checkpoint_id(place: ModelPlace, store: StoreConfig) -> str:
    """The hash of a checkpoint's list of files, and so of all that is in it.

    Raises:
        InputError: there is no whole checkpoint.
    """
    try:
        listed = open_store(place.run, store).get(f"{checkpoint.FOLDER}/{place.name}/{checkpoint.FILES}")
    except MissingObject as error:
        raise InputError(
            f"{place.uri} is not a whole checkpoint (no {checkpoint.FILES}); name a run or another checkpoint"
        ) from error
    return hashlib.sha256(listed).hexdigest()


def model_id(place: ModelPlace, store: StoreConfig) -> str:
    """A hash of all that decides what a model predicts: weights, and what was chosen.  Raises as ``checkpoint_id``."""
    run = open_store(place.run, store)
    if place.name == FOLDS:
        parts = [model_id(find_model(uri, store), store) for uri in _fold_runs(run)]
        return hashlib.sha256("".join(parts).encode()).hexdigest()
    own = checkpoint_id(place, store)
    chosen = inference_bytes(run, place.name)
    return hashlib.sha256(own.encode() + chosen).hexdigest() if chosen else own


def check_as_validated(config: Config, model: Model) -> None:
    """Raise ``InputError`` where predictions are asked for in another way than was chosen for the model."""
    check_mirror(config, model)
    now, before = config.score, model.config.score
    if model.inference.chosen is None:
        if now.ensemble:
            raise InputError(
                "score.ensemble is set, but nothing has been chosen for this model; give the run's `bts train` command "
                "with it, which then only chooses"
            )
        return
    for key, wanted, had in (
        ("choices", now.choices, before.choices),
        ("ensemble", _absolute(now.ensemble), _absolute(before.ensemble)),
    ):
        if set(wanted) != set(had):
            raise InputError(
                f"score.{key} is [{', '.join(wanted)}], but how this model predicts was chosen with "
                f"[{', '.join(had)}]; leave it as it was, or give the run's `bts train` command with it, which "
                "then only chooses anew"
            )


def check_mirror(config: Config, model: Model) -> None:
    """Raise ``InputError`` where validation mirrored otherwise than ``config`` says."""
    now, before = config.score.mirror, model.config.score.mirror
    if now != before:
        raise InputError(
            f"score.mirror is {now}, but epoch and threshold of this model were chosen with {before}; leave it as it "
            f"was, or train with score.mirror={now}"
        )


def _absolute(uris: Sequence[str]) -> tuple[str, ...]:
    return tuple(absolute_uri(uri) for uri in uris)


def _as_chosen(config: Config, chosen: Inference) -> Config:
    """The config with those settings of the choices that were in force when they were made."""
    assert chosen.chosen is not None
    settings = {key: tuple(chosen.chosen[key]) for key in ("choices", "ensemble")}
    return config.model_copy(update={"score": config.score.model_copy(update=settings)})


def _fold_runs(run: ObjectStore) -> list[str]:
    """The runs of a cross-validation that have checkpoints."""
    # Below a fold's run there may be a search, whose trials have checkpoints too.
    found = (re.match(rf"({FOLDS}/[^/]+)/{checkpoint.FOLDER}/", e.key) for e in run.list(f"{FOLDS}/"))
    return [join_uri(run.uri, name) for name in sorted({match[1] for match in found if match})]


def _load_folds(run: ObjectStore, store: StoreConfig, device: torch.device) -> Model:
    """The folds' models as one.

    No patient is unseen by all of them, so nothing can be chosen for them together: the threshold is the median of
    theirs, and the rest is what most of them chose.  All their networks are averaged, those of a fold's ensemble too.
    Config, progress and what their patients are like are the first fold's, but for what concerns all of them; ``folds``
    has each fold's own.
    """
    places = [find_model(uri, store) for uri in _fold_runs(run)]
    models = [load_model(place, store, device) for place in places]
    check_alike(models[0].config, models[1:])
    split = models[0].config.split
    if not isinstance(split, HoldoutSplit) or split.folds != len(models):
        raise InputError(
            f"{run.uri} has models of {len(models)} folds and not of all; give its `bts run` command again, which does "
            "what is left"
        )
    ways = [model.inference for model in models]
    parts = [each for place in places for each in checkpoints_of(place, store)]
    inference = Inference(
        float(np.median([way.threshold for way in ways])),
        2 * sum(way.mirror for way in ways) > len(ways),
        Counter(way.keep for way in ways).most_common(1)[0][0],
        tuple(Member(each.uri, checkpoint_id(each, store)) for each in parts[1:]),
        {"rows": [], "choices": list(models[0].config.score.choices), "ensemble": []},
    )
    progress = replace(
        models[0].progress,
        threshold=inference.threshold,
        data_id=hashlib.sha256("".join(m.progress.data_id for m in models).encode()).hexdigest()[:16],
        patients=sorted({patient for model in models for patient in model.progress.patients}),
    )
    network = ensemble([own for model in models for own in networks_of(model.network)])
    config = models[0].config.model_copy(update={"split": split.model_copy(update={"fold": "all"})})
    folds = tuple(zip(places, models, strict=True))
    return Model(network.eval(), config, progress, device, inference, folds)
