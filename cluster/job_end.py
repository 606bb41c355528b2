"""How a job ends: stopped, and told to the person who waits."""

import re

from ray.job_submission import JobDetails, JobStatus
from rich.markup import escape

from cluster import console
from cluster.interruption import interruption_held
from cluster.job_log import JobLog
from shards.errors import InputError


def stop(log: JobLog) -> JobDetails:
    """Have a job end its workers in good order, and print its log until it has."""
    # Whatever happens here, the job is told.
    with interruption_held(
        lambda: console.err.print(f"the job {log.job} is being stopped; Ctrl-C again leaves at once")
    ):
        log.dashboard.stop_job(log.job)
    return log.follow()


def stop_interrupted(log: JobLog) -> None:
    """After a Ctrl-C: stop the job and wait for its end; at a second one leave at once.

    Whatever the head answers, or if it does not, the command ends as one that was interrupted; a job that may go on is
    named with the command that stops it.
    """
    url, told = log.dashboard.url, False
    try:
        console.err.print(
            f"stopping the job {log.job}, whose workers end in good order; Ctrl-C again does not wait for it"
        )
        # Nothing holds the next Ctrl-C: it is the second.
        log.dashboard.stop_job(log.job)
        told = True
        log.follow()
    except KeyboardInterrupt:
        _tell_left(log.job, url, told=told)
        raise
    except (InputError, RuntimeError) as error:
        console.err.print(str(error), markup=False)
        _tell_left(log.job, url, told=told)


def _tell_left(job: str, url: str, *, told: bool) -> None:
    if told:
        console.err.print(f"left; the job was told to stop, which `bts jobs --address {url}` shows")
    else:
        console.err.print(f"left; the job {job} may go on: `bts stop {job} --address {url}` stops it")


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
    console.err.print(
        f"[bold red]error[/bold red] the job {job} failed{with_code}:", escape(reason.removeprefix("error "))
    )
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
