"""The ``Runtime`` of a Ray Train worker.

Checkpoints go to the run's store by our own commit protocol, not through Ray's upload, which loses failed parts
silently; Ray is handed the metrics, and after a failure the store says where training goes on.
"""

from dataclasses import dataclass

import ray.train
import torch

from bts_dist.runtime import Metrics, pick_device


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

    def preemption(self) -> bool:
        return ray.train.get_preemption_info() is not None  # a barrier too


def ray_runtime() -> RayRuntime:
    """The runtime of the Train worker this is called in."""
    return RayRuntime(pick_device(int(ray.train.get_context().get_local_rank())))
