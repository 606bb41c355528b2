"""Commands about the record of a run."""

from typing import Annotated

import typer

from bts_dist.run import named, run_uri
from cluster.options import ConfigFiles, Overrides, load
from shards.errors import InputError


def sync(
    run: Annotated[
        str | None, typer.Argument(help="A run; without it the one of the --config.", metavar="[RUN]")
    ] = None,
    config: ConfigFiles = None,
    overrides: Overrides = None,
) -> None:
    """Upload what W&B lacks of a run, its trials and its folds; what is there is not sent again."""
    from cluster import sync_stage

    if run is None and not config:
        raise InputError("say which run to upload: bts sync RUN, or the --config it was trained with")
    cfg = named(load(config, overrides))
    sync_stage.sync(run or run_uri(cfg), cfg)
