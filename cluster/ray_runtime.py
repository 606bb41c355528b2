"""The ``Runtime`` of a Ray Train worker.

Checkpoints go to the run's store by our own commit protocol, not through Ray's upload, which loses failed parts
silently; Ray is handed the metrics, and after a failure the store says where training goes on.
"""

from dataclasses import dataclass
from pathlib import Path

import ray.train
import torch

from bts_dist import checkpoint
from bts_dist.checkpoint import Note
from bts_dist.runtime import Metrics, pick_device
from shards.store import ObjectStore


@dataclass(frozen=True)
class RayRuntime:
    run: ObjectStore
    scratch: Path
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

    def report(self, metrics: Metrics, checkpoint_dir: Path | None) -> None:
        if checkpoint_dir is not None:
            checkpoint.publish(checkpoint_dir, self.run, checkpoint_dir.name)
        # Tune gets rank 0's metrics; they are the same on every rank.  A barrier over all ranks.
        ray.train.report(dict(metrics))

    def latest_checkpoint(self, note: Note) -> Path | None:
        return checkpoint.fetch_newest(self.run, self.scratch, note)


def ray_runtime(run: ObjectStore, scratch: Path) -> RayRuntime:
    """The runtime of the Train worker this is called in."""
    context = ray.train.get_context()
    return RayRuntime(run, scratch, pick_device(int(context.get_local_rank())))
