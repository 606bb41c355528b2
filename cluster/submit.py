"""A job sent to a Ray cluster through Ray's job API, and what becomes of it."""

import re
import secrets
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ray.job_submission import JobDetails, JobStatus
from rich.markup import escape

from bts_dist.run import run_uri
from cluster import console
from cluster.dashboard import Dashboard
from cluster.job_log import JobLog
from cluster.payload import make_payload
from cluster.submission import Submission, entrypoint

STOP_WAIT_S = 60
"""Seconds that a job told to stop has to end its workers in good order; Ray gives three."""


def start(submission: Submission, dashboard: Dashboard) -> str:
    """Send the job and return its id.  Ctrl-C meanwhile leaves no job behind.

    Raises:
        InputError: the code is too large to travel.
        RuntimeError: the cluster does not take it.
    """
    job = f"{submission.stage}-{secrets.token_hex(4)}"
    try:
        _send(submission, dashboard, job)
    except KeyboardInterrupt:
        if any(known.submission_id == job for known in dashboard.list_jobs()):
            dashboard.stop_job(job)
        raise
    return job


def _send(submission: Submission, dashboard: Dashboard, job: str) -> None:
    with tempfile.TemporaryDirectory(prefix="bts-submit-") as scratch:
        payload = make_payload(Path(scratch), submission.config)
        size = payload.num_bytes / 2**20
        console.stage("submit", f"{payload.num_files} files of code, {size:.1f} MiB, to {dashboard.url}")
        dashboard.submit_job(
            entrypoint=entrypoint(submission, head_python(dashboard)),
            submission_id=job,
            runtime_env={
                "working_dir": scratch,
                # Credentials are the cluster's own and never travel.
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
            },
            metadata={"stage": submission.stage, "run": run_uri(submission.config)},
        )


def wait(dashboard: Dashboard, job: str) -> int:
    """Print a job's log until it has ended; the exit code that stands for what became of it.

    Ctrl-C stops the job and waits for its end; a second one leaves at once, with the job told to stop.
    """
    log = JobLog(dashboard, job)
    try:
        return conclude(log.follow())
    except KeyboardInterrupt:
        console.err.print(
            f"stopping the job {job}, whose workers end in good order; Ctrl-C again does not wait for it"
        )
    try:
        # In a thread, which Ctrl-C does not interrupt.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(dashboard.stop_job, job).result()
        log.follow()
    except KeyboardInterrupt:
        console.err.print(f"left; the job was told to stop, which `bts jobs --address {dashboard.url}` shows")
        raise
    raise KeyboardInterrupt


def conclude(details: JobDetails) -> int:
    """Say why a job failed, in one line, and return its exit code: 0, 1 or 2 as those of every command."""
    job, code = details.submission_id, details.driver_exit_code
    match details.status:
        case JobStatus.SUCCEEDED:
            console.stage("submit", f"job {job} is done")
            return 0
        case JobStatus.STOPPED:
            console.err.print(f"the job {job} was stopped; the same command goes on")
            return 1
    reason = last_error(details.message or "")
    with_code = "" if code is None else f" with exit code {code}"
    console.err.print(f"[bold red]error[/bold red] the job {job} failed{with_code}:", escape(reason))
    if missing := _MISSING.search(reason):
        console.err.print(
            f"  install what bts-dist needs, {missing[1]} among it, into the Python of every node, or its image"
        )
    return 2 if code == 2 else 1


_ERROR = re.compile(r"(?:error |[\w.]*(?:Error|Exception)\b)")
_MISSING = re.compile(r"No module named '([\w.]+)'")


def last_error(text: str) -> str:
    """The line of a log that says why it ended: its last error, or else its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR.match(line)]
    return (errors or lines or ["it left no log"])[-1]


def head_python(dashboard: Dashboard) -> str:
    """The interpreter that the head's Ray runs under; it need not be the one that is found first there."""
    marker = "--python_worker_command="
    for node in dashboard.read("/nodes?view=summary")["summary"]:
        if node["raylet"].get("isHeadNode"):
            words = (word for word in node.get("cmdline", ()) if word.startswith(marker))
            return next((word.removeprefix(marker).split()[0] for word in words), "python")
    return "python"


def tell_local_places(submission: Submission, dashboard: Dashboard) -> None:
    """Say which places every node must see, where there are several nodes."""
    config = submission.config
    places = {"data.source": config.data.source, "data.shards": config.data.shards, "run.dir": config.run.dir}
    local = [f"{key}={place}" for key, place in places.items() if "://" not in place]
    nodes = dashboard.read("/api/v0/nodes")["result"]["result"]
    alive = sum(node["state"] == "ALIVE" for node in nodes)
    if local and alive > 1:
        console.out.print(
            f"  every one of {alive} nodes must see {', '.join(local)}: a shared folder, or use s3://"
        )
