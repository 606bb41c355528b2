"""The commands about jobs of a Ray cluster: ``bts submit``, ``jobs``, ``logs``, ``stop`` and ``status``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bts_dist.compose import load_config
from bts_dist.config import Config
from bts_dist.run import run_uri
from cluster import console
from cluster.auth_token import use_token
from cluster.options import ConfigFiles, ModelOption, Overrides
from shards.errors import InputError

if TYPE_CHECKING:
    from cluster.dashboard import Dashboard

Address = Annotated[
    str | None,
    typer.Option("--address", help="Dashboard of the cluster, e.g. http://head:8265.", metavar="URL"),
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="A job, as `bts jobs` lists it.")]


def submit(
    stage: Annotated[
        str, typer.Argument(metavar="STAGE", help="verify, pack, tune, train, score, report or run.")
    ],
    config: ConfigFiles = None,
    overrides: Overrides = None,
    address: Address = None,
    model: ModelOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the job and end with its exit code.")] = False,
) -> int:
    """Run a stage as a job of a Ray cluster; without an address, on a cluster started here."""
    from cluster.submission import check_stage, make_submission

    check_stage(stage, model)
    base = None
    if model is not None and not config:
        from cluster import stages

        base = stages.model_config(model)
    cfg = load_config(config or [], overrides or [], base)
    url = _find(address, cfg)
    if url is None:
        return _run_here(stage, config or [], overrides or [], model)
    from cluster import submit as jobs
    from cluster.dashboard import Dashboard

    submission = make_submission(stage, cfg, model)
    dashboard = Dashboard(url)
    jobs.tell_local_places(submission, dashboard)
    job = jobs.start(submission, dashboard)
    console.stage("submit", f"job {job}: {stage}, {run_uri(submission.config)}")
    if wait:
        return jobs.wait(dashboard, job)
    console.next_step(f"bts logs {job} -f --address {url}")
    console.next_step(f"bts status --address {url}")
    return 0


def _run_here(stage: str, config: list[Path], overrides: list[str], model: str | None) -> int:
    from cluster.cli import app

    console.stage("submit", "no address: the stage runs here, on a Ray cluster of this machine")
    options = [*(f"--config={path}" for path in config), *(f"--set={text}" for text in overrides)]
    options += [] if model is None else [f"--model={model}"]
    app([stage, *options], standalone_mode=False)
    return 0


def _find(address: str | None, config: Config) -> str | None:
    use_token()
    from cluster.dashboard import find_url

    return find_url(address, config.cluster.address)


def _dashboard(address: str | None, config: list[Path] | None, overrides: list[str] | None) -> "Dashboard":
    """The cluster that a command about jobs speaks to."""
    url = _find(address, load_config(config or [], overrides or []))
    if url is None:
        raise InputError(
            "say which cluster: --address http://HEAD:8265, cluster.address in the config, or the variable "
            "RAY_API_SERVER_ADDRESS"
        )
    from cluster.dashboard import Dashboard

    return Dashboard(url)
