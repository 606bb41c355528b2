"""Errors of a worker that every new start would meet again: they end the training at once.

Ray starts the workers again after any error of theirs, ``cluster.max_failures`` times.  An error that its controller
itself meets, in a callback, is final.
"""

from collections.abc import Mapping
from typing import TypeGuard

from ray.train import TrainingFailedError, UserCallback

from bts_dist.attempt import FencedError
from bts_dist.memory import OutOfMemoryError
from shards.errors import InputError, UnreachableError

FATAL = (InputError, FloatingPointError, OutOfMemoryError, FencedError)
"""They follow from the settings and the data alone, or another command has the run by now."""


class EndAtOnce(UserCallback):
    """Ends the training on every worker when one of them raises a fatal error."""

    def after_exception(self, run_context: object, worker_exceptions: Mapping[int, Exception]) -> None:
        fatal = _fatal(worker_exceptions)
        if fatal is not None:
            raise fatal


def fatal_error(error: TrainingFailedError) -> Exception | None:
    """The worker's own error that ended the training, or None where it ended for another reason."""
    final = getattr(error, "controller_failure", None)
    if _is_fatal(final):
        return final
    return _fatal(getattr(error, "worker_failures", {}))


def _fatal(failures: Mapping[int, Exception]) -> Exception | None:
    """The fatal error of the lowest rank; what other ranks say may be a consequence of it."""
    return next((error for _, error in sorted(failures.items()) if _is_fatal(error)), None)


def _is_fatal(error: object) -> TypeGuard[Exception]:
    # The command itself has reached the store, so workers that do not may meet an outage.
    return isinstance(error, FATAL) and not isinstance(error, UnreachableError)
