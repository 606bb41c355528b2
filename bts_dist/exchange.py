"""How fast ranks sum tensors: what an optimizer step waits for when its own work is done."""

import tempfile
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessException, spawn

_FLOATS = 4 << 20
"""16 MiB in float32: the gradients of four million parameters."""
_WARM_UP = 3
_MEETING = timedelta(seconds=30)
"""How long the ranks wait for each other."""


def measure_all_reduce(ranks: int, seconds: float = 1.0) -> float:
    """Bytes a second that each of ``ranks`` local processes sends and receives while they sum float32 tensors.

    One process for each GPU with NCCL where there are so many GPUs, else gloo on the CPU.  It is the bus bandwidth of
    NCCL's tests (nccl-tests, doc/PERFORMANCE.md): size / time × 2 (ranks - 1) / ranks, which the number of ranks does
    not change where the wires are the limit.

    Raises:
        RuntimeError: a process failed, or the ranks did not find each other.
    """
    with tempfile.TemporaryDirectory(prefix="bts-exchange-") as scratch:
        try:
            spawn(_measure, (ranks, seconds, scratch), nprocs=ranks)  # type: ignore[no-untyped-call]
        except ProcessException as error:
            raise RuntimeError(str(error).strip().splitlines()[-1]) from error
        return float(Path(scratch, "speed").read_text())


def _measure(rank: int, ranks: int, seconds: float, scratch: str) -> None:
    cuda = torch.cuda.device_count() >= ranks
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    torch.set_num_threads(1)
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=f"file://{scratch}/meeting",
        rank=rank,
        world_size=ranks,
        timeout=_MEETING,
    )
    try:
        tensor = torch.zeros(_FLOATS, device=device)
        each = _seconds(tensor, _WARM_UP)
        each = _seconds(tensor, _WARM_UP)
        # All ranks must take as many: the slowest says how many there is time for.
        rounds = torch.tensor([seconds / each], device=device)
        dist.all_reduce(rounds, dist.ReduceOp.MIN)
        each = _seconds(tensor, max(1, int(rounds)))
        if rank == 0:
            sent = tensor.nbytes * 2 * (ranks - 1) / ranks
            Path(scratch, "speed").write_text(str(sent / each))
    finally:
        dist.destroy_process_group()


def _seconds(tensor: torch.Tensor, rounds: int) -> float:
    """Seconds of one sum, the mean of so many."""
    began = time.perf_counter()
    for _ in range(rounds):
        dist.all_reduce(tensor)
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
    return (time.perf_counter() - began) / rounds
