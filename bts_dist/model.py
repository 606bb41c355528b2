"""A trained model: where it lies, and what it takes to predict with it as it was validated."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from bts_dist import checkpoint
from bts_dist.checkpoint import Progress
from bts_dist.config import Config
from bts_dist.unet import make_unet
from shards.config import StoreConfig
from shards.errors import InputError
from shards.store import join_uri, open_store


@dataclass(frozen=True)
class Model:
    """A trained model, ready to predict."""

    network: nn.Module
    config: Config
    progress: Progress
    device: torch.device


@dataclass(frozen=True)
class ModelPlace:
    """Where a checkpoint lies: the run's location and the checkpoint's name."""

    run: str
    name: str


def find_model(uri: str, store: StoreConfig) -> ModelPlace:
    """The checkpoint meant by ``uri``: a checkpoint itself, or a run's best one.

    Raises:
        InputError: there is no whole checkpoint.
    """
    uri = uri.rstrip("/")
    parent, _, name = uri.rpartition(f"/{checkpoint.FOLDER}/")
    if parent and checkpoint.is_name(name):
        return ModelPlace(parent, name)
    run = open_store(uri, store)
    with tempfile.TemporaryDirectory() as scratch:
        newest = checkpoint.fetch_newest(run, Path(scratch), lambda _: None)
        if newest is None:
            raise InputError(
                f"{uri} holds no whole checkpoint; train one with `bts train`, or name another run"
            )
        best = checkpoint.read_progress(newest).best
    return ModelPlace(uri, best or newest.name)


def load_model(place: ModelPlace, store: StoreConfig, device: torch.device) -> Model:
    """Load the weights that were validated: the moving average where there is one.

    Raises:
        InputError: the checkpoint is missing, damaged, or of another architecture than its config.
    """
    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder = checkpoint.fetch(open_store(place.run, store), place.name, Path(scratch) / place.name)
        except ValueError as error:
            raise InputError(
                f"{join_uri(place.run, checkpoint.FOLDER, place.name)} is not a whole checkpoint: {error}"
            ) from error
        config = checkpoint.read_config(folder)
        network = make_unet(config.model, device)
        ema = folder / "ema.safetensors"
        checkpoint.load_weights(network, ema if ema.is_file() else folder / "model.safetensors")
        progress = checkpoint.read_progress(folder)
    return Model(network.eval(), config, progress, device)


def check_as_validated(config: Config, model: Model) -> None:
    """Raise ``InputError`` where predictions are to be made in another way than those the threshold was chosen on."""
    if config.score.mirror != model.config.score.mirror:
        raise InputError(
            f"score.mirror is {config.score.mirror}, but epoch and threshold of this model were chosen with "
            f"{model.config.score.mirror}; leave it as it was, or train with score.mirror={config.score.mirror}"
        )
