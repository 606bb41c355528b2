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
MEETING_S = 30.0
"""How long the ranks wait for each other."""


def measure_all_reduce(ranks: int, seconds: float = 1.0) -> float:
    """Bytes a second that each of ``ranks`` local processes sends and receives while they sum float32 tensors.

    One process for each GPU with NCCL where there are so many GPUs, else gloo on the CPU.  What is measured:
    ``time_all_reduce``.

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
    speed = time_all_reduce(device, f"file://{scratch}/meeting", rank, ranks, seconds)
    if rank == 0:
        Path(scratch, "speed").write_text(str(speed))


def time_all_reduce(device: torch.device, meeting: str, rank: int, ranks: int, seconds: float) -> float:
    """One rank's part in a sum of float32 tensors over all, repeated for so many seconds, and the speed it saw.

    Bytes a second that each rank sends and receives, the bus bandwidth of NCCL's tests (nccl-tests,
    doc/PERFORMANCE.md): size / time × 2 (ranks - 1) / ranks, which the number of ranks does not change where the
    wires are the limit.  NCCL on a GPU, gloo on the CPU; ``meeting`` is a URL of torch's (``init_method``).

    Raises:
        RuntimeError: the ranks did not find each other within ``MEETING_S``.
    """
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=meeting,
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=MEETING_S),
    )
    try:
        tensor = torch.zeros(_FLOATS, device=device)
        each = _seconds(tensor, _WARM_UP)
        each = _seconds(tensor, _WARM_UP)
        # All ranks must take as many: the slowest says how many there is time for.
        rounds = torch.tensor([seconds / each], device=device)
        dist.all_reduce(rounds, dist.ReduceOp.MIN)
        each = _seconds(tensor, max(1, int(rounds)))
        return tensor.nbytes * 2 * (ranks - 1) / ranks / each
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
