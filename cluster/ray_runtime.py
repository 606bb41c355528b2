"""The ``Runtime`` of a Ray Train worker.

Checkpoints go to the run's store by our own commit protocol, not through Ray's upload, which loses failed parts
silently; Ray is handed the metrics, and after a failure the store says where training goes on.
"""

import time
from dataclasses import dataclass

import ray.train
import torch

from bts_dist.runtime import Metrics, pick_device

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
    """The runtime of the Train worker this is called in."""
    return RayRuntime(pick_device(int(ray.train.get_context().get_local_rank())))
