"""The options that commands share, and what is made of them."""

import shlex
from typing import Annotated

import typer

from bts_dist.compose import load_config
from bts_dist.config import Config
from shards.errors import InputError

ConfigFiles = Annotated[
    list[str] | None,
    typer.Option("--config", "-c", help="YAML file, a path or s3://…; later ones win.", metavar="FILE"),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="Override, e.g. optim.lr=3e-4.", metavar="KEY=VALUE"),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="A run (its best checkpoint) or one checkpoint.", metavar="URI")
]

PackedOption = Annotated[
    str | None, typer.Option("--packed", help="Re-hash a packed data set instead.", metavar="URI")
]
ScoresOption = Annotated[
    str | None, typer.Option("--scores", help="Which scores of the run.", metavar="FOLDER")
]


def load(config: list[str] | None, overrides: list[str] | None) -> Config:
    """The config that the options describe.  Raises ``InputError``."""
    return load_config(config or [], overrides or [])


def load_to_score(config: list[str] | None, overrides: list[str] | None, model: str | None) -> Config:
    """The same for scoring: without a config file the model's own says where its data lies and how it was scored.

    Raises:
        InputError: as ``load``; or neither says which model it is.
    """
    if config:
        return load(config, overrides)
    if model is None:
        raise InputError(
            "say which model to score: --model RUN_OR_CHECKPOINT, or the --config it was trained with"
        )
    from cluster import stages

    return load_config([], overrides or [], stages.model_config(model))


def same(config: list[str] | None, overrides: list[str] | None) -> str:
    """The options as typed, for the next command."""
    options = [("--config", place) for place in config or []] + [("--set", text) for text in overrides or []]
    return shlex.join(word for option in options for word in option)
