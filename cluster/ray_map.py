"""Tasks on a Ray cluster, with the same signature as ``shards.parallel.process_map``."""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import ray
from ray.exceptions import RayTaskError

from cluster.nodes import read_room
from cluster.placement import fit_without_gpus


def ray_map(
    num_cpus: float = 1, num_gpus: float = 0, retries: int = 3
) -> Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]:
    """Run tasks anywhere on the cluster and yield results as they finish.

    Each task has so many CPUs and GPUs.  One whose worker or node dies is run again; one that raises is not, and its
    own error is raised here.  Twice as many tasks as run at a time are with the cluster: none of its CPUs waits, an
    autoscaler sees that there is more to do, and the tasks of a large job do not pile up in the driver.  Where tasks
    without a GPU that wait would have it start nodes with one, there are only as many as other nodes can hold.
    """

    def run(work: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        remote = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=retries)(work)
        rest = iter(tasks)
        pending: list[Any] = []
        most = math.inf if num_gpus else fit_without_gpus(read_room(), {"CPU": num_cpus})
        try:
            while True:
                now = _at_a_time(num_cpus, num_gpus)
                room = int(max(now, min(2 * now, most))) - len(pending)
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
