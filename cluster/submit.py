"""A job sent to a Ray cluster through Ray's job API."""

import secrets
import shlex
import socket
import tempfile
from pathlib import Path
from typing import Any

from bts_dist import commit
from cluster import console
from cluster.dashboard import Dashboard
from cluster.interruption import interruption_held
from cluster.job_end import conclude, stop_interrupted
from cluster.job_log import JobLog
from cluster.payload import make_payload
from cluster.submission import ON_HEAD, Submission, entrypoint, local_places
from shards.errors import UnreachableError

STOP_WAIT_S = 60
"""Seconds that a job told to stop has to end its workers in good order; Ray gives three."""


def run_job(submission: Submission, dashboard: Dashboard, *, wait: bool) -> int:
    """Send the job, and with ``wait`` follow it to its end; the exit code of the command.

    Ctrl-C stops the job, also one that is on its way, and waits for its end.  A second one leaves at once; a job that
    may have started all the same is named with the command that stops it.

    Raises:
        InputError: the code is too large to travel.
        RuntimeError: the cluster does not take it.
    """
    job = f"{submission.stage}-{secrets.token_hex(4)}"
    request = _prepare(submission, dashboard, job)
    log, sent = JobLog(dashboard, job), False
    try:
        with interruption_held(lambda: _tell_held(job)):
            _send(dashboard, request)
            sent = True
        console.stage("submit", f"job {job}: {submission.stage}, {submission.place}")
        if wait:
            return conclude(log.follow())
        console.next_step(f"bts logs {job} -f --address {dashboard.url}")
        console.next_step(f"bts status --address {dashboard.url}")
    except KeyboardInterrupt:
        if sent:
            stop_interrupted(log)
        else:
            console.err.print(f"left; {_may_have_started(dashboard, job)}")
        raise
    return 0


def _prepare(submission: Submission, dashboard: Dashboard, job: str) -> dict[str, Any]:
    """Bring the code there, which starts nothing, and write the request that does."""
    with tempfile.TemporaryDirectory(prefix="bts-submit-") as scratch:
        payload = make_payload(Path(scratch), submission.config)
        size = payload.num_bytes / 2**20
        console.stage(
            "submit", f"job {job}: {payload.num_files} files of code, {size:.1f} MiB, to {dashboard.url}"
        )
        code = dashboard.upload(payload.folder)
    known = commit.code_commit()
    # Credentials are the cluster's own and never travel.
    variables = {
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
        **({commit.VARIABLE: known} if known is not None else {}),
    }
    return {
        "submission_id": job,
        "entrypoint": entrypoint(submission, head_python(dashboard)),
        "runtime_env": {"working_dir": code, "env_vars": variables},
        "metadata": {"stage": submission.stage, "run": submission.place},
    }


def _send(dashboard: Dashboard, request: dict[str, Any]) -> None:
    """Have the cluster start the job."""
    job = request["submission_id"]
    try:
        dashboard.submit_job(**request)
    except UnreachableError as error:
        raise UnreachableError(f"{error}\n{_may_have_started(dashboard, job)}") from error
    except RuntimeError as error:
        if _NO_AGENT in str(error):
            raise RuntimeError(
                f"the head of {dashboard.url} takes no jobs: its agent does not run, as when another Ray on that "
                "machine has the agent's port; start the head with another "
                "--dashboard-agent-listen-port, or wait if it is new"
            ) from error
        raise RuntimeError(f"{error}\n{_may_have_started(dashboard, job)}") from error


_NO_AGENT = "No available agent to submit job"


def _tell_held(job: str) -> None:
    console.err.print(
        f"the job {job} is on its way and is stopped when it has arrived; Ctrl-C again does not wait for that"
    )


def _may_have_started(dashboard: Dashboard, job: str) -> str:
    there = f"--address {dashboard.url}"
    return f"the job {job} may have started all the same: `bts jobs {there}` shows it, `bts stop {job} {there}` ends it"


def head_python(dashboard: Dashboard) -> str:
    """The interpreter that the head's Ray runs under; it need not be the one that is found first there."""
    marker = "--python_worker_command="
    try:
        nodes = dashboard.read("/nodes?view=summary")["summary"]
    except RuntimeError:  # a head that does not say
        nodes = []
    for node in nodes:
        if node["raylet"].get("isHeadNode"):
            words = (word for word in node.get("cmdline", ()) if word.startswith(marker))
            return next((_first_word(word.removeprefix(marker)) for word in words), "python")
    return "python"


def _first_word(command: str) -> str:
    """Ray writes the line as for Windows, where double quotes alone hold a path with a space together."""
    words = shlex.shlex(command, posix=True)
    words.whitespace_split, words.commenters, words.quotes = True, "", '"'
    return next(words)


def tell_places(submission: Submission, dashboard: Dashboard) -> None:
    """Say which local places of the job must be seen by nodes that are not this machine."""
    places = local_places(submission)
    nodes = dashboard.read("/api/v0/nodes")["result"]["result"]
    away = [node for node in nodes if node["state"] == "ALIVE" and not _is_here(node["node_ip"])]
    if submission.stage in ON_HEAD:
        away = [node for node in away if node["is_head_node"]]
    if not (places and away):
        return
    who = "the cluster's head" if submission.stage in ON_HEAD else "every node of the cluster"
    listed = ", ".join(f"{key}={place}" for key, place in places.items())
    console.out.print(f"  {who} must see {listed}: a shared folder, or use s3://", markup=False)


def _is_here(address: str) -> bool:
    """Whether an IP address is one of this machine's."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
