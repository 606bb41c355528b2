"""What training knows of the world around it: rank, world size, device, and whom to tell how far it is.

Two implementations: this module's, for one process or for torchrun, and ``cluster.ray_runtime``.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from bts_dist.interface import address_towards, use_interface
from shards.errors import InputError

Metrics = Mapping[str, float | int]

_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


class Runtime(Protocol):
    """One worker's view of a training job."""

    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def local_rank(self) -> int: ...
    @property
    def local_world_size(self) -> int:
        """Workers of this job on this worker's node."""
        ...

    @property
    def device(self) -> torch.device: ...

    def report(self, metrics: Metrics) -> None:
        """Hand over an epoch's metrics, equal on all ranks; every rank calls it."""

    def preemption(self) -> float | None:
        """Seconds until a worker's node is taken away; None where no notice was given.  Every rank calls it."""
        ...


@dataclass(frozen=True)
class LocalRuntime:
    """One process, or one of torchrun's."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    local_world_size: int = 1

    def report(self, metrics: Metrics) -> None:
        """Nobody to tell: the run's record has it."""

    def preemption(self) -> float | None:
        return None


def local_runtime(gpus: float | None = None) -> LocalRuntime:
    """A runtime of one process; ``gpus`` as in ``pick_device``."""
    return LocalRuntime(0, 1, 0, pick_device(0, gpus))


@contextmanager
def torchrun_runtime(gpus: float | None = None) -> Iterator[LocalRuntime]:
    """A runtime under torchrun, which sets RANK, LOCAL_RANK, WORLD_SIZE and LOCAL_WORLD_SIZE.

    ``gpus`` as in ``pick_device``.

    Raises:
        InputError: they are not set, or this node has fewer GPUs than processes.
    """
    missing = [name for name in _TORCHRUN if name not in os.environ]
    if missing:
        raise InputError(
            f"cluster.runtime is torchrun but {missing[0]} is not set; start it as "
            "`torchrun --nproc-per-node=2 --no-python bts train …`, or use cluster.runtime=ray or local"
        )
    local_rank, here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    device = pick_device(local_rank, gpus)
    if device.type == "cuda" and here > torch.cuda.device_count():
        raise InputError(
            f"{here} processes and {torch.cuda.device_count()} GPUs on this node, and NCCL wants one for each; lower "
            "--nproc-per-node, or train on CPUs with cluster.gpus_per_worker=0"
        )
    address = address_towards(os.environ.get("MASTER_ADDR", ""))
    if address is not None:
        use_interface(address)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield LocalRuntime(dist.get_rank(), dist.get_world_size(), local_rank, device, here)
    finally:
        # No barrier first: after one rank's error it would hang the healthy ones.
        dist.destroy_process_group()


def pick_device(local_rank: int, gpus: float | None = None) -> torch.device:
    """The GPU of a process by its rank on the node, the CPU where torch sees none.

    ``gpus`` is ``cluster.gpus_per_worker``: a process that was given none takes none, though torch may see one.
    """
    if gpus != 0 and torch.cuda.is_available():
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        return device
    return torch.device("cpu")


def all_reduce(tensor: Tensor) -> Tensor:
    """Sum over ranks, in place; the tensor itself where there is one process."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor
