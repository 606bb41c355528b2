"""Of all that workers say when one of them is lost, people are told which it was."""

import pytest
from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

from cluster.failures import cause

WORKER = (
    "A worker health check failed.\nWorker info: Worker(\n  actor=Actor(RayTrainWorker, 5f2a),\n  "
    "metadata=ActorMetadata(hostname='gpu-7', node_id='ab', node_ip='10.0.0.7', pid=4711, accelerator_ids={})"
)


def lost(*, preempted: bool = False) -> WorkerHealthCheckFailedError:
    return WorkerHealthCheckFailedError(WORKER, failure=RayActorError(preempted=preempted))


def test_a_lost_worker_is_the_cause_whatever_the_others_say() -> None:
    broken = RuntimeError("[gloo] Connection closed by peer")
    assert cause({0: broken, 1: lost(), 2: broken}, 30) == "rank 1 (process 4711 on 10.0.0.7) was lost"


def test_a_frozen_worker_is_told_with_its_time() -> None:
    found = cause({0: RuntimeError("timed out"), 3: WorkerHealthCheckTimeoutError(WORKER)}, 30)
    assert found == "rank 3 (process 4711 on 10.0.0.7) gave no sign of life for 30 s"


def test_a_node_that_was_taken_away_is_told() -> None:
    assert cause({1: lost(preempted=True)}, 30).endswith("was lost: its node was taken away")


@pytest.mark.parametrize("ranks", [(0, 1), (1, 0)])
def test_otherwise_the_lowest_rank_speaks(ranks: tuple[int, int]) -> None:
    errors: dict[int, Exception] = {rank: KeyError(rank) for rank in ranks}
    assert cause(errors, 30) == "rank 0: KeyError: 0"
