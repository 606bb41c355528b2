"""Which devices a training runs on: what they are called, and how many there are."""

from dataclasses import dataclass
from pathlib import Path

import torch

from bts_dist.runtime import Runtime, all_reduce

_LONGEST = 160
"""Bytes of a device's identity that ranks tell each other."""


@dataclass(frozen=True)
class Devices:
    """The devices of all ranks of a training."""

    name: str
    """As ``device_name``; where they differ, each name once, joined with `` + ``."""
    number: int
    """GPUs, each once however many ranks share it; on CPUs the ranks."""


def device_name(device: torch.device, cpus: Path = Path("/proc/cpuinfo")) -> str:
    """The GPU as its driver calls it, or the processor and the threads that torch uses of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_processor(cpus)} × {threads} thread{'' if threads == 1 else 's'}"


def gather_devices(runtime: Runtime) -> Devices:
    """The devices of all ranks; every rank calls it and gets the same."""
    mine = f"{device_name(runtime.device)}\0{_identity(runtime)}".encode()[:_LONGEST]
    table = torch.zeros(runtime.world_size, _LONGEST, dtype=torch.int64)
    table[runtime.rank, : len(mine)] = torch.tensor(list(mine))
    rows = all_reduce(table.to(runtime.device)).tolist()
    devices = {bytes(row).rstrip(b"\0").decode(errors="replace") for row in rows}
    names = sorted({device.partition("\0")[0] for device in devices})
    return Devices(" + ".join(names), len(devices))


def _identity(runtime: Runtime) -> str:
    """Tells the rank's device from those of other ranks."""
    if runtime.device.type == "cuda":
        return str(torch.cuda.get_device_properties(runtime.device).uuid)
    return str(runtime.rank)


def _processor(cpus: Path) -> str:
    """The processor's name as Linux has it (proc(5)), which on some architectures has none."""
    lines = cpus.read_text(errors="replace").splitlines() if cpus.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or "CPU"
