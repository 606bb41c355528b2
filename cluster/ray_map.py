"""Tasks on a Ray cluster, with the same signature as ``shards.parallel.process_map``."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayTaskError


def ray_map(
    num_cpus: float = 1, retries: int = 3
) -> Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]:
    """Run tasks anywhere on the cluster and yield results as they finish.

    A task whose worker or node dies is run again; one that raises is not, and its own error is raised here.
    """

    def run(work: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        remote = ray.remote(num_cpus=num_cpus, max_retries=retries)(work)
        pending = [remote.remote(task) for task in tasks]
        try:
            while pending:
                done, pending = ray.wait(pending, num_returns=1)
                try:
                    yield ray.get(done[0])
                except RayTaskError as error:
                    raise error.cause from None
        finally:
            for reference in pending:
                ray.cancel(reference)

    return run
