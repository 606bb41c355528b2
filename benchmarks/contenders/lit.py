"""LitData: its chunks by its own writer, read by its ``StreamingDataset`` and ``StreamingDataLoader``.

PNG files are stored as bytes and decoded by a ``transform``, its hook for that: its own image type would need
torchvision.  Arrays are stored as tensors.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from litdata import StreamingDataLoader, StreamingDataset
from litdata.streaming import downloader
from litdata.streaming.writer import BinaryWriter
from torch import Tensor

from contenders.contract import BATCH, SHARD, Epoch, Setting, Slice, png, read_png, workers

RANKS = False

# Its Rust client turns down endpoints without TLS, such as the test server, and has no setting for it.
downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True


def write(source: Path, slices: Sequence[Slice], folder: Path, encoding: str) -> None:
    encode = png if encoding == "png" else torch.from_numpy
    writer = BinaryWriter(str(folder), chunk_size=SHARD)
    for number, item in enumerate(slices):
        image, mask = item.pixels()
        writer[number] = {"image": encode(image), "mask": encode(mask)}
    writer.done()
    writer.merge()


@contextmanager
def opened(setting: Setting, rank: int) -> Iterator[Epoch]:
    remote: dict[str, Any] = {}
    if setting.remote:
        remote = {
            "cache_dir": setting.cache,
            "max_cache_size": "25GB",  # by default it wants to leave 50 GB of the disk free
            "storage_options": {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]},
        }
    dataset = StreamingDataset(
        setting.data,
        shuffle=True,
        # By default it would read a whole chunk from its cache for each sample of this size.
        batch_decode=SHARD,
        transform=_decoded if setting.encoding == "png" else None,
        **remote,
    )
    loader = StreamingDataLoader(dataset, batch_size=BATCH, **workers(setting.processes))

    yield lambda number: ((batch["image"], batch["mask"]) for batch in loader)


def _decoded(sample: dict[str, bytes]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(read_png(data)) for name, data in sample.items()}
