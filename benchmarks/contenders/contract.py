"""What a loader has to do to be measured."""

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import boto3
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

BATCH = 16
"""Samples that all processes together deliver at a time."""
SHARD = 256
"""Samples in a shard, in every format that has shards."""

Pixels = NDArray[np.uint8]
Batch = tuple[Tensor, Tensor]
"""Images (B, H, W, 3) and masks (B, H, W) of {0, 1}, both uint8."""
Epoch = Callable[[int], Iterator[Batch]]
"""Batches of the epoch of a number, each sample once, shuffled."""


@dataclass(frozen=True)
class Slice:
    """One training slice, as Kaggle's files."""

    key: str
    image: Path
    mask: Path

    def pixels(self) -> tuple[Pixels, Pixels]:
        return read_tiffs(self.image.read_bytes(), self.mask.read_bytes())


@dataclass(frozen=True)
class Setting:
    """One way of reading one data set."""

    data: str
    """A folder, or ``s3://bucket/prefix``."""
    encoding: str
    keeps: bool
    processes: int
    """That decode."""
    cache: str
    """A folder for what is fetched from object storage; empty before the first epoch."""

    @property
    def remote(self) -> bool:
        return self.data.startswith("s3://")


class Contender(Protocol):
    """A module of this package.  Its imports are not timed; what ``opened`` does is."""

    RANKS: bool
    """Whether its decoding processes are ranks of the training, each with its part of every batch.  If not, they are
    workers of a DataLoader, beside the process that takes the batches; for one process, that one decodes."""

    def write(self, source: Path, slices: Sequence[Slice], folder: Path, encoding: str) -> None:
        """Make the data set in an empty folder; not timed."""
        ...

    def opened(self, setting: Setting, rank: int) -> AbstractContextManager[Epoch]: ...


def checksum(samples: Iterable[tuple[Pixels, Pixels]]) -> str:
    """The sum of the hashes of all samples' pixels, which is the same in any order; sums add up modulo 2**64."""
    total = 0
    for image, mask in samples:
        digest = hashlib.blake2b(image.tobytes() + mask.tobytes(), digest_size=8).digest()
        total += int.from_bytes(digest)
    return f"{total % 2**64:016x}"


def read_tiffs(image: bytes, mask: bytes) -> tuple[Pixels, Pixels]:
    """Kaggle's two files to (H, W, 3) and (H, W) of {0, 1}."""
    truth = np.asarray(Image.open(io.BytesIO(mask)))
    return np.asarray(Image.open(io.BytesIO(image))), (truth > 0).astype(np.uint8)


def read_png(data: bytes) -> Pixels:
    """A PNG file's pixels; those of a one-bit one are 0 and 1."""
    return np.asarray(Image.open(io.BytesIO(data))).astype(np.uint8, copy=False)


def png(pixels: Pixels) -> bytes:
    """The same PNG bytes that our shards hold: masks, which are (H, W), have one bit."""
    from shards.encode import encode_image, encode_mask

    return encode_image(pixels, "png") if pixels.ndim == 3 else encode_mask(pixels)


def s3_client() -> Any:
    """A boto3 client of the server that the environment names."""
    return boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])


def keys_below(uri: str) -> list[tuple[str, str]]:
    """Bucket and key of every object below ``s3://bucket/prefix``, sorted."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    pages = s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
    return [(bucket, item["Key"]) for page in pages for item in page.get("Contents", ())]


def workers(processes: int) -> dict[str, Any]:
    """Arguments of a DataLoader that decodes in so many processes; for one it is the process that takes batches."""
    if processes == 1:
        return {"num_workers": 0}
    return {"num_workers": processes, "persistent_workers": True, "prefetch_factor": 4}
