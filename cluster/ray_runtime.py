"""The ``Runtime`` of a Ray Train worker.

Checkpoints go to the run's store by our own commit protocol, not through Ray's upload, which loses failed parts
silently; Ray is handed the metrics, and after a failure the store says where training goes on.
"""

import time
from dataclasses import dataclass

import ray.train
import torch

from bts_dist.runtime import Metrics, pick_device
from shards.errors import InputError

UNKNOWN_DEADLINE_S = 30.0
"""What is assumed of a notice without a deadline: the shortest that a cloud gives."""


@dataclass(frozen=True)
class RayRuntime:
    device: torch.device

    @property
    def rank(self) -> int:
        return int(ray.train.get_context().get_world_rank())

    @property
    def world_size(self) -> int:
        return int(ray.train.get_context().get_world_size())

    @property
    def local_rank(self) -> int:
        return int(ray.train.get_context().get_local_rank())

    @property
    def local_world_size(self) -> int:
        return int(ray.train.get_context().get_local_world_size())

    def report(self, metrics: Metrics) -> None:
        # Tune gets rank 0's metrics; they are the same on every rank.  A barrier over all ranks.
        ray.train.report(dict(metrics))

    def preemption(self) -> float | None:
        notice = ray.train.get_preemption_info()  # a barrier too
        if notice is None:
            return None
        if notice.deadline_ms is None:
            return UNKNOWN_DEADLINE_S
        return max(0.0, float(notice.deadline_ms / 1000 - time.time()))


def ray_runtime() -> RayRuntime:
    """The runtime of the Train worker this is called in.

    Raises:
        InputError: Ray gave it a GPU that torch cannot use.
    """
    if not ray.get_runtime_context().get_accelerator_ids()["GPU"]:
        # The node may have GPUs all the same, which were not asked for.
        return RayRuntime(torch.device("cpu"))
    if not torch.cuda.is_available():
        raise InputError(
            f"Ray counts a GPU on {ray.util.get_node_ip_address()} that torch {torch.__version__} cannot use; install "
            "its driver and a CUDA build of torch there, or set cluster.gpus_per_worker=0"
        )
    return RayRuntime(pick_device(int(ray.train.get_context().get_local_rank())))
