"""What training knows of the world around it: rank, world size, device, and where checkpoints go.

Two implementations: this module's, for one process or for torchrun, and ``cluster.ray_runtime``.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from bts_dist import checkpoint
from bts_dist.checkpoint import Note
from shards.errors import InputError
from shards.store import ObjectStore

Metrics = Mapping[str, float | int]


class Runtime(Protocol):
    """One worker's view of a training job."""

    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def local_rank(self) -> int: ...
    @property
    def device(self) -> torch.device: ...

    def report(self, metrics: Metrics, checkpoint_dir: Path | None) -> None:
        """Hand over an epoch's metrics and, on rank 0, its checkpoint.  Called by every rank.

        The checkpoint is whole in the run's store when this returns on rank 0.
        """

    def latest_checkpoint(self, note: Note) -> Path | None:
        """A local folder with the newest whole checkpoint of this run, or None; notes which were skipped."""


@dataclass(frozen=True)
class LocalRuntime:
    """One process, or one of torchrun's: ranks come from the environment, checkpoints go straight to the store."""

    run: ObjectStore
    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    scratch: Path

    def report(self, metrics: Metrics, checkpoint_dir: Path | None) -> None:
        if checkpoint_dir is not None:
            checkpoint.publish(checkpoint_dir, self.run, checkpoint_dir.name)

    def latest_checkpoint(self, note: Note) -> Path | None:
        return checkpoint.fetch_newest(self.run, self.scratch, note)


@contextmanager
def local_runtime(run: ObjectStore) -> Iterator[LocalRuntime]:
    """A runtime of one process."""
    with tempfile.TemporaryDirectory(prefix="bts-") as scratch:
        yield LocalRuntime(run, 0, 1, 0, pick_device(0), Path(scratch))


@contextmanager
def torchrun_runtime(run: ObjectStore) -> Iterator[LocalRuntime]:
    """A runtime under torchrun, which sets RANK, LOCAL_RANK and WORLD_SIZE.

    Raises:
        InputError: they are not set.
    """
    missing = [name for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if name not in os.environ]
    if missing:
        raise InputError(
            f"cluster.runtime is torchrun but {missing[0]} is not set; start it as "
            "`torchrun --nproc-per-node=2 --no-python bts train …`, or use cluster.runtime=ray or local"
        )
    device = pick_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        with tempfile.TemporaryDirectory(prefix="bts-") as scratch:
            rank, world = dist.get_rank(), dist.get_world_size()
            yield LocalRuntime(run, rank, world, int(os.environ["LOCAL_RANK"]), device, Path(scratch))
    finally:
        # No barrier first: after one rank's error it would hang the healthy ones.
        dist.destroy_process_group()


def pick_device(local_rank: int) -> torch.device:
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        return device
    return torch.device("cpu")


def all_reduce(tensor: Tensor) -> Tensor:
    """Sum over ranks, in place; the tensor itself where there is one process."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor
