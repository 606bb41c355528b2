"""The options that commands share, and what is made of them."""

from pathlib import Path
from typing import Annotated

import typer

from bts_dist.compose import load_config
from bts_dist.config import Config

ConfigFiles = Annotated[
    list[Path] | None,
    typer.Option("--config", "-c", help="YAML file; later ones win.", metavar="FILE"),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="Override, e.g. optim.lr=3e-4.", metavar="KEY=VALUE"),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="A run (its best checkpoint) or one checkpoint.", metavar="URI")
]


def load(config: list[Path] | None, overrides: list[str] | None) -> Config:
    """The config that the options describe.  Raises ``InputError``."""
    return load_config(config or [], overrides or [])


def same(config: list[Path] | None, overrides: list[str] | None) -> str:
    """The options as typed, for the next command."""
    return " ".join([*(f"--config {c}" for c in config or []), *(f"--set {o}" for o in overrides or [])])
