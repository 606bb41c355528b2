"""A plain PyTorch Dataset over Kaggle's TIFF files, as a first script has it; from S3 it gets a file at a time."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from contenders.contract import (
    BATCH,
    Epoch,
    Setting,
    Slice,
    keys_below,
    read_tiffs,
    s3_client,
    workers,
)

RANKS = False

Pairs = list[tuple[str, str]]


def write(source: Path, slices: Sequence[Slice], folder: Path, encoding: str) -> None:
    for item in slices:
        for file in (item.image, item.mask):
            copy = folder / file.parent.name / file.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())


class TiffSlices(Dataset[tuple[Tensor, Tensor]]):
    """Slices by number, read by ``read``."""

    def __init__(self, pairs: Pairs, read: Callable[[str], bytes]) -> None:
        self.pairs, self.read = pairs, read

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        image, mask = self.pairs[number]
        return tuple(map(torch.from_numpy, read_tiffs(self.read(image), self.read(mask))))


class KeptSlices(TiffSlices):
    """The same, keeping what it has read in memory that the DataLoader's workers share."""

    def __init__(self, pairs: Pairs, read: Callable[[str], bytes]) -> None:
        super().__init__(pairs, read)
        image, mask = super().__getitem__(0)
        self.images = torch.zeros(len(pairs), *image.shape, dtype=torch.uint8).share_memory_()
        self.masks = torch.zeros(len(pairs), *mask.shape, dtype=torch.uint8).share_memory_()
        self.held = torch.zeros(len(pairs), dtype=torch.bool).share_memory_()

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        if not self.held[number]:
            self.images[number], self.masks[number] = super().__getitem__(number)
            self.held[number] = True
        return self.images[number], self.masks[number]


class _S3Files:
    """Reads objects, with a client for each process: two that shared a connection would mix up the answers."""

    def __init__(self, bucket: str) -> None:
        self.bucket, self.process = bucket, 0

    def __call__(self, key: str) -> bytes:
        if self.process != os.getpid():
            self.process, self.client = os.getpid(), s3_client()
        return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()


@contextmanager
def opened(setting: Setting, rank: int) -> Iterator[Epoch]:
    read: Callable[[str], bytes]
    if setting.remote:
        objects = keys_below(setting.data)
        names, read = [key for _, key in objects], _S3Files(objects[0][0])
    else:
        names = sorted(str(path) for path in Path(setting.data).rglob("*.tif"))
        read = _read_file
    pairs = [
        (name, f"{name.removesuffix('.tif')}_mask.tif") for name in names if not name.endswith("_mask.tif")
    ]
    dataset = (KeptSlices if setting.keeps else TiffSlices)(pairs, read)
    loader = DataLoader(dataset, BATCH, shuffle=True, **workers(setting.processes))

    yield lambda number: iter(loader)


def _read_file(name: str) -> bytes:
    return Path(name).read_bytes()
