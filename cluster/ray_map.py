"""Tasks on a Ray cluster, with the same signature as ``shards.parallel.process_map``."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import ray
from ray.exceptions import RayTaskError


def ray_map(
    num_cpus: float = 1, num_gpus: float = 0, retries: int = 3
) -> Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]:
    """Run tasks anywhere on the cluster and yield results as they finish.

    Each task has so many CPUs and GPUs.  One whose worker or node dies is run again; one that raises is not, and its
    own error is raised here.  Twice as many tasks as run at a time are with the cluster: none of its CPUs waits, an
    autoscaler sees that there is more to do, and the tasks of a large job do not pile up in the driver.
    """

    def run(work: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        remote = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=retries)(work)
        rest = iter(tasks)
        pending: list[Any] = []
        try:
            while True:
                room = 2 * _at_a_time(num_cpus, num_gpus) - len(pending)
                pending += [remote.remote(task) for task in islice(rest, max(0, room))]
                if not pending:
                    return
                done, pending = ray.wait(pending, num_returns=1)
                try:
                    yield ray.get(done[0])
                except RayTaskError as error:
                    raise error.cause from None
        finally:
            for reference in pending:
                ray.cancel(reference)

    return run


def _at_a_time(num_cpus: float, num_gpus: float) -> int:
    """How many tasks the cluster, as large as it is now, can run at once."""
    total = ray.cluster_resources()
    room = [total.get(name, 0) / each for name, each in (("CPU", num_cpus), ("GPU", num_gpus)) if each]
    return max(1, int(min(room)))
