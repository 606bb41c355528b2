"""Why workers failed, in words for people, and kept with the run.

Ray tells the controller of every failure, also of those that a new start mends.
"""

import re

from ray.exceptions import RayActorError
from ray.train import UserCallback

from bts_dist.attempt import Attempt, newest_attempt
from bts_dist.config import Config
from bts_dist.recovery import record_failure
from bts_dist.run import open_run

_PROCESS = re.compile(r"pid=(\d+)")
_ADDRESS = re.compile(r"(?:node_ip|ip)='?([0-9a-fA-F.:]+?)'?[,)]")


class FailureRecord(UserCallback):
    """Keeps the cause of each failure in the run, from where the next attempt tells it."""

    def __init__(self, config: Config) -> None:
        self._config = config.model_dump_json()

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        config = Config.model_validate_json(self._config)
        run = open_run(config)
        record_failure(Attempt(run, newest_attempt(run)), cause(worker_exceptions, config.cluster.frozen_s))


def cause(failures: dict[int, Exception], frozen_s: float) -> str:
    """The failure that the others come from, with its rank.

    A lost worker breaks the connections of all the others, whose errors say nothing more.
    """
    for rank, error in sorted(failures.items()):
        match type(error).__name__:
            case "WorkerHealthCheckTimeoutError":
                return f"rank {rank}{_place(error)} gave no sign of life for {frozen_s:g} s"
            case "WorkerHealthCheckFailedError":
                return f"rank {rank}{_place(error)} was lost{_reason(error)}"
    rank, error = min(failures.items())
    return f"rank {rank}: {type(error).__name__}: {error}"


def _place(error: Exception) -> str:
    """Where the worker ran, as far as Ray's text says."""
    text = str(error)
    process, address = _PROCESS.search(text), _ADDRESS.search(text)
    found = [f"process {process[1]}" if process else "", f"on {address[1]}" if address else ""]
    return f" ({' '.join(part for part in found if part)})" if process or address else ""


def _reason(error: Exception) -> str:
    """Ray seldom knows yet whether it was the process alone or its whole node."""
    failure = getattr(error, "health_check_failure", None)
    taken = isinstance(failure, RayActorError) and failure.preempted
    return ": its node was taken away" if taken else ""
