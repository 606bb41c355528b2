"""The jobs of a cluster: listed, found by id, and how far each has come."""

import difflib
import re
import time
from collections.abc import Sequence

from ray.job_submission import JobDetails, JobType

from cluster.dashboard import Dashboard
from shards.errors import InputError

HEADINGS = ("job", "stage", "run", "status", "started", "took", "exit code")
LOG_LINES = 40
"""Last lines of a log that are looked through for a job's progress."""


def list_jobs(dashboard: Dashboard) -> list[JobDetails]:
    """The jobs that were submitted, the newest first; what joined the cluster by itself is none."""
    jobs = [job for job in dashboard.list_jobs() if job.type == JobType.SUBMISSION]
    return sorted(jobs, key=lambda job: job.start_time or 0, reverse=True)


def find_job(dashboard: Dashboard, job_id: str) -> JobDetails:
    """One of them.

    Raises:
        InputError: there is no such job; the nearest id is named.
    """
    jobs = {job.submission_id: job for job in list_jobs(dashboard)}
    if job_id in jobs:
        return jobs[job_id]
    near = difflib.get_close_matches(job_id, list(jobs), n=1, cutoff=0.4)
    hint = (
        f"did you mean {near[0]}?"
        if near
        else f"`bts jobs --address {dashboard.url}` lists those that there are"
    )
    raise InputError(f"the cluster at {dashboard.url} has no job {job_id}; {hint}")


def table(jobs: Sequence[JobDetails], now_ms: float) -> list[tuple[str, ...]]:
    """Rows below ``HEADINGS``; times are this machine's local ones."""
    return [HEADINGS, *(_row(job, now_ms) for job in jobs)]


def _row(job: JobDetails, now_ms: float) -> tuple[str, ...]:
    metadata = job.metadata or {}
    started = ended = ""
    if job.start_time:
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.start_time / 1000))
        ended = duration(((job.end_time or now_ms) - job.start_time) / 1000)
    code = "" if job.driver_exit_code is None else str(job.driver_exit_code)
    return (
        job.submission_id or "",
        # A job that another command submitted is told by what it runs.
        metadata.get("stage") or job.entrypoint[:40],
        metadata.get("run", ""),
        job.status.value.lower(),
        started,
        ended,
        code,
    )


def duration(seconds: float) -> str:
    """``43 s``, ``12 min 05 s`` or ``3 h 07 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


_FOLD = r"(fold \d+  )?"
"""Before each line of a cross-validation's fold."""
_COUNTED = re.compile(rf"{_FOLD}[\w-]+: (\d+)/(\d+)(.*)")
"""What ``console.progress`` prints where there is no terminal."""
_ROW = re.compile(rf"{_FOLD} *((?:epoch|trial) \d.*)")

_RAY_LINE = re.compile(r"Runtime env is setting up|^Running entrypoint for job")


def progress(log: str) -> str:
    """How far a job has come, by the newest line of its log that counts, or else by its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for line in reversed(lines):
        if counted := _COUNTED.match(line):
            done, total, note = int(counted[2]), int(counted[3]), counted[4].strip(" ,")
            return f"{counted[1] or ''}{done / max(total, 1):.0%}  {note or f'{done}/{total}'}"
        if row := _ROW.match(line):
            return f"{row[1] or ''}{row[2]}"
    # Ray's own lines come first, and then nothing until there is room for the workers.
    return lines[-1] if lines and not _RAY_LINE.search(lines[-1]) else "starts, or waits for room"
