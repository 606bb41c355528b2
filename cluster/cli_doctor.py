"""The commands that look before anything runs: ``bts doctor`` and ``bts estimate``."""

from pathlib import Path
from typing import Annotated

import typer

from bts_dist.run import named
from cluster import console
from cluster.options import ConfigFiles, ModelOption, Overrides, load, same


def doctor(config: ConfigFiles = None, overrides: Overrides = None) -> None:
    """Check versions, hardware, stores, W&B, Ray and clocks; exit code 1 when something is wrong."""
    from cluster import doctor as examination

    cfg = load(config, overrides)
    if not examination.doctor(cfg):
        raise typer.Exit(1)
    console.next_step(f"bts run {same(config, overrides)}".rstrip())


def estimate(
    config: ConfigFiles = None,
    overrides: Overrides = None,
    model: ModelOption = None,
    prices: Annotated[Path, typer.Option("--prices", help="What machines cost.", metavar="FILE")] = Path(
        "configs/prices.yaml"
    ),
) -> None:
    """Say what the job will take: time, GPU hours, money, and bytes read from the store."""
    from cluster import estimate as estimation

    estimation.estimate(named(load(config, overrides)), model, prices)
    console.next_step(f"bts run {same(config, overrides)}".rstrip())
