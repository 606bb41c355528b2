"""A job sent to a Ray cluster through Ray's job API."""

import secrets
import tempfile
import time
from pathlib import Path

from bts_dist import commit
from bts_dist.run import run_uri
from cluster import console
from cluster.dashboard import Dashboard
from cluster.payload import make_payload
from cluster.submission import Submission, entrypoint
from shards.errors import UnreachableError

ARRIVAL_S = 5.0
"""Seconds after which a request that was broken off has made no job."""
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
        if _arrived(dashboard, job):
            dashboard.stop_job(job)
        raise
    except UnreachableError as error:
        raise UnreachableError(
            f"{error}\nThe job {job} may have started all the same: `bts jobs --address {dashboard.url}` shows it, and "
            f"`bts stop {job} --address {dashboard.url}` ends it"
        ) from error
    except RuntimeError as error:
        if _NO_AGENT in str(error):
            raise RuntimeError(
                f"the head of {dashboard.url} takes no jobs: its agent does not run, as when another Ray on that "
                "machine has the agent's port; start the head with another "
                "--dashboard-agent-listen-port, or wait if it is new"
            ) from error
        raise
    return job


def _arrived(dashboard: Dashboard, job: str) -> bool:
    """Whether the cluster has got the job; what is on its way has some seconds."""
    end = time.monotonic() + ARRIVAL_S
    while True:
        if any(known.submission_id == job for known in dashboard.list_jobs()):
            return True
        if time.monotonic() > end:
            return False
        time.sleep(0.5)


_NO_AGENT = "No available agent to submit job"


def _send(submission: Submission, dashboard: Dashboard, job: str) -> None:
    known = commit.code_commit()
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
                "env_vars": {
                    "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
                    **({commit.VARIABLE: known} if known is not None else {}),
                },
            },
            metadata={"stage": submission.stage, "run": run_uri(submission.config)},
        )


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
