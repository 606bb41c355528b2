"""Decoded samples kept between epochs: in memory that a node's workers share, or on each worker's accelerator."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.config import DataConfig
from shards.encode import Pixels
from shards.errors import InputError
from shards.memory import (
    SampleMemory,
    is_shared,
    private_memory,
    sample_bytes,
    shared_memory,
    shared_room,
)
from shards.order import Ids
from shards.reader import SplitReader

_LAYOUT = "1"
"""Changes with what is kept for a sample of given bytes and size."""
_SHARE = 0.5
"""Share of the free memory that ``auto`` lets the samples of a split take."""


class SampleCache(Protocol):
    """Decoded samples by id; ids that are not held must be put before they are taken."""

    def held(self, ids: Ids) -> NDArray[np.bool_]: ...
    def put(self, ids: Ids, image_BHWC: Pixels, mask_BHW: Pixels) -> None: ...
    def take(self, ids: Ids) -> tuple[Tensor, Tensor]:
        """Copies of images (B, H, W, 3) and masks (B, H, W), uint8."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class MemoryCache:
    """Samples in main memory.  Writing the same sample twice, from two workers, writes the same bytes."""

    memory: SampleMemory

    def held(self, ids: Ids) -> NDArray[np.bool_]:
        return self.memory.held[ids]

    def put(self, ids: Ids, image_BHWC: Pixels, mask_BHW: Pixels) -> None:
        self.memory.put(ids, image_BHWC, mask_BHW)

    def take(self, ids: Ids) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.memory.images[ids]), torch.from_numpy(self.memory.masks[ids])

    def close(self) -> None:
        self.memory.close()


class DeviceCache:
    """Samples on one accelerator, so that a batch never crosses the bus again."""

    def __init__(self, num_samples: int, height: int, width: int, device: torch.device) -> None:
        self._images = torch.empty((num_samples, height, width, 3), dtype=torch.uint8, device=device)
        self._masks = torch.empty((num_samples, height, width), dtype=torch.uint8, device=device)
        self._held = np.zeros(num_samples, bool)

    def held(self, ids: Ids) -> NDArray[np.bool_]:
        return self._held[ids]

    def put(self, ids: Ids, image_BHWC: Pixels, mask_BHW: Pixels) -> None:
        at = self._at(ids)
        self._images[at] = torch.from_numpy(image_BHWC).to(self._images.device)
        self._masks[at] = torch.from_numpy(mask_BHW).to(self._masks.device)
        self._held[ids] = True

    def take(self, ids: Ids) -> tuple[Tensor, Tensor]:
        at = self._at(ids)
        return self._images[at], self._masks[at]

    def close(self) -> None:
        self._images, self._masks = self._images[:0].clone(), self._masks[:0].clone()

    def _at(self, ids: Ids) -> Tensor:
        return torch.from_numpy(ids).to(self._images.device)


def open_cache(
    reader: SplitReader, config: DataConfig, shape: tuple[int, int], device: torch.device
) -> tuple[SampleCache | None, str]:
    """The cache that ``config.cache`` asks for, or none; and what it is, in words.

    Raises:
        InputError: the samples do not fit where they were asked to be kept.
    """
    num, needed = len(reader.index), sample_bytes(len(reader.index), *shape)
    size = f"{num:,} samples of {shape[0]} × {shape[1]} px, {_gib(needed)}"
    shards = "shards stay on this node's disk" if reader.on_disk else "shards are read where they are"
    if reader.remote and not reader.on_disk:
        shards = "shards are fetched whenever they are needed"
    match config.cache:
        case "none" | "disk":
            return None, f"cache {config.cache}: {shards}"
        case "device":
            return _on_device(num, shape, needed, device), f"cache device: {size} on {device}"
        case "memory":
            kept, where = _in_memory(reader, shape, needed)
            return kept, f"cache memory: {size} {where}"
        case "auto":
            if device.type == "cuda" and needed <= _SHARE * _device_room(device):
                return DeviceCache(num, *shape, device), f"cache auto → device: {size} on {device}"
            room = min(available_memory(), shared_room())
            # What another worker of this node reserved before is not free any more, yet ours as well.
            if needed <= _SHARE * room or is_shared(_name(reader, shape)):
                kept, where = _in_memory(reader, shape, needed)
                return kept, f"cache auto → memory: {size} {where}"
            kind = "disk" if reader.on_disk else "none"
            return None, f"cache auto → {kind}: {size} do not fit in half of {_gib(room)} free; {shards}"


def available_memory() -> int:
    """Bytes this process may still take, by the system's account and its control group's."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    for folder, limit, used in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        if Path(folder, limit).is_file():
            text = Path(folder, limit).read_text().strip()
            if text != "max":
                free = min(free, int(text) - int(Path(folder, used).read_text()))
    return max(free, 0)


def _in_memory(reader: SplitReader, shape: tuple[int, int], needed: int) -> tuple[SampleCache, str]:
    """Shared memory, or this worker's own where sharing has no room; and which."""
    num = len(reader.index)
    try:
        return MemoryCache(shared_memory(_name(reader, shape), num, *shape)), "shared by the node's workers"
    except OSError as error:
        free = available_memory()
        if needed > free:
            raise InputError(
                f"data.cache=memory: {num:,} decoded samples take {_gib(needed)}, {_gib(free)} of memory are free; "
                "set data.cache=auto or disk, or lower data.image_size"
            ) from error
        reason = (error.strerror or str(error)).lower()
        return MemoryCache(private_memory(num, *shape)), f"in each worker (nothing can be shared: {reason})"


def _name(reader: SplitReader, shape: tuple[int, int]) -> str:
    return hashlib.sha256(f"{_LAYOUT} {reader.content} {shape}".encode()).hexdigest()[:32]


def _on_device(num: int, shape: tuple[int, int], needed: int, device: torch.device) -> SampleCache:
    if device.type == "cpu":
        raise InputError(
            "data.cache=device needs an accelerator and there is none; set data.cache=auto or memory"
        )
    free = _device_room(device)
    if needed > free:
        raise InputError(
            f"data.cache=device: {num:,} decoded samples take {_gib(needed)}, {device} has {_gib(free)} free; "
            "set data.cache=auto or memory, or lower data.image_size"
        )
    return DeviceCache(num, *shape, device)


def _device_room(device: torch.device) -> int:
    free, _ = torch.cuda.mem_get_info(device)
    return int(free)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
