"""MosaicML Streaming: MDS shards by its own writer, read by its ``StreamingDataset`` and ``StreamingDataLoader``."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from streaming import MDSWriter, StreamingDataLoader, StreamingDataset
from torch import Tensor

from contenders.contract import BATCH, Epoch, Pixels, Setting, Slice, workers

RANKS = False

_SIZE_LIMIT = {"png": 1 << 24, "raw": 1 << 26}
"""Bytes in a shard: what comes to about as many slices as the other formats' shards hold."""


def write(source: Path, slices: Sequence[Slice], folder: Path, encoding: str) -> None:
    columns = {"image": "png", "mask": "png"}
    if encoding == "raw":
        shapes = [",".join(map(str, pixels.shape)) for pixels in slices[0].pixels()]
        columns = {name: f"ndarray:uint8:{shape}" for name, shape in zip(columns, shapes, strict=True)}
    with MDSWriter(out=str(folder), columns=columns, size_limit=_SIZE_LIMIT[encoding]) as writer:
        for item in slices:
            image, mask = item.pixels()
            if encoding == "raw":
                writer.write({"image": image, "mask": mask})
            else:
                outline = Image.fromarray(mask * 255).convert("1")
                writer.write({"image": Image.fromarray(image), "mask": outline})


class Slices(StreamingDataset):
    """Samples as tensors."""

    def __getitem__(self, at: int) -> tuple[Tensor, Tensor]:
        sample: dict[str, Any] = super().__getitem__(at)
        return _tensor(sample["image"]), _tensor(sample["mask"])


@contextmanager
def opened(setting: Setting, rank: int) -> Iterator[Epoch]:
    os.environ["S3_ENDPOINT_URL"] = os.environ.get("AWS_ENDPOINT_URL", "")
    place = {"remote": setting.data, "local": setting.cache} if setting.remote else {"local": setting.data}
    dataset = Slices(**place, batch_size=BATCH, shuffle=True)
    loader = StreamingDataLoader(dataset, batch_size=BATCH, **workers(setting.processes))

    yield lambda number: iter(loader)


def _tensor(value: Image.Image | Pixels) -> Tensor:
    return torch.from_numpy(np.asarray(value).astype(np.uint8, copy=False))
