"""The commands about jobs of a Ray cluster: ``bts submit``, ``jobs``, ``logs``, ``stop`` and ``status``."""

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from bts_dist.config import Config
from cluster import console
from cluster.auth_token import use_token
from cluster.options import (
    ConfigFiles,
    ModelOption,
    Overrides,
    PackedOption,
    ScoresOption,
    load,
    load_to_score,
)
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
    packed: PackedOption = None,
    scores: ScoresOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the job and end with its exit code.")] = False,
) -> int:
    """Run a stage as a job of a Ray cluster; without an address, on a cluster started here."""
    from cluster.submission import check_stage, make_submission

    given = {"--model": model, "--packed": packed, "--scores": scores}
    options = {name: value for name, value in given.items() if value is not None}
    check_stage(stage, options)
    cfg = load_to_score(config, overrides, model) if stage == "score" else load(config, overrides)
    url = _find(address, cfg)
    if url is None:
        return _run_here(stage, config or [], overrides or [], options)
    submission = make_submission(stage, cfg, options)
    from cluster.dashboard import Dashboard
    from cluster.submit import run_job, tell_places

    dashboard = Dashboard(url)
    tell_places(submission, dashboard)
    return run_job(submission, dashboard, wait=wait)


def jobs(config: ConfigFiles = None, overrides: Overrides = None, address: Address = None) -> None:
    """List a cluster's jobs, the newest first."""
    dashboard = _dashboard(address, config, overrides)
    from cluster.jobs import list_jobs, table

    found = list_jobs(dashboard)
    if not found:
        console.out.print(f"no jobs at {dashboard.url}")
        return
    _show_table(f"Jobs at {dashboard.url}", table(found, 1000 * time.time()))


def logs(
    job: JobId,
    config: ConfigFiles = None,
    overrides: Overrides = None,
    address: Address = None,
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Go on until the job has ended; Ctrl-C leaves the job alone."),
    ] = False,
) -> None:
    """Print a job's log."""
    dashboard = _dashboard(address, config, overrides)
    from cluster.job_log import JobLog
    from cluster.jobs import find_job

    details = find_job(dashboard, job)
    if follow and not details.status.is_terminal():
        JobLog(dashboard, job).follow()
    else:
        sys.stdout.write(dashboard.get_job_logs(job))


def stop(
    job: JobId, config: ConfigFiles = None, overrides: Overrides = None, address: Address = None
) -> None:
    """Stop a job and wait until its workers have ended; what it saved stays."""
    dashboard = _dashboard(address, config, overrides)
    from cluster import job_end
    from cluster.job_log import JobLog
    from cluster.jobs import find_job

    details = find_job(dashboard, job)
    if not details.status.is_terminal():
        before = len(dashboard.get_job_logs(job))
        details = job_end.stop(JobLog(dashboard, job, printed=before))
    console.stage("stop", f"job {job}: {details.status.value.lower()}")


def status(config: ConfigFiles = None, overrides: Overrides = None, address: Address = None) -> None:
    """Show a cluster's nodes, what waits for room on them, and how far its jobs are."""
    dashboard = _dashboard(address, config, overrides)
    from cluster.cluster_status import job_rows, node_rows, used_by_node, waiting
    from cluster.jobs import list_jobs

    load = dashboard.read("/api/cluster_status")
    nodes = dashboard.read("/nodes?view=summary")["summary"]
    _show_table(f"Nodes of {dashboard.url}", node_rows(nodes, used_by_node(load)))
    console.out.print("waiting for room: " + (", ".join(waiting(load)) or "nothing"), markup=False)
    running = job_rows(dashboard, list_jobs(dashboard), 1000 * time.time())
    if len(running) == 1:
        console.out.print("no job is running")
    else:
        _show_table("Jobs", running)


def _show_table(title: str, rows: list[tuple[str, ...]]) -> None:
    """Cells are what others have named, brackets and all."""
    console.show_table(title, [[escape(cell) for cell in row] for row in rows])


def _run_here(stage: str, config: list[str], overrides: list[str], own: dict[str, str]) -> int:
    from cluster.cli import app

    console.stage("submit", "no address: the stage runs here, on a Ray cluster of this machine")
    options = [*(f"--config={place}" for place in config), *(f"--set={text}" for text in overrides)]
    options += [f"{name}={value}" for name, value in own.items()]
    # As ``guarded`` reads it: an exit code after Ctrl-C, and otherwise what the stage returned.
    code = app([stage, *options], standalone_mode=False)
    return code if isinstance(code, int) else 0


def _find(address: str | None, config: Config) -> str | None:
    use_token()
    from cluster.dashboard import find_url

    return find_url(address, config.cluster.address)


def _dashboard(address: str | None, config: list[str] | None, overrides: list[str] | None) -> "Dashboard":
    """The cluster that a command about jobs speaks to."""
    url = _find(address, load(config, overrides))
    if url is None:
        raise InputError(
            "say which cluster: --address http://HEAD:8265, cluster.address in the config, or the variable "
            "RAY_API_SERVER_ADDRESS"
        )
    from cluster.dashboard import Dashboard

    return Dashboard(url)
