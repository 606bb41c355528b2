"""Stock webdataset: over our own PNG shards, and over shards of .npy files.

Undecoded samples go through its shuffle buffer; PyTorch's own collation builds batches in the workers, where tensors
travel by shared memory.  From S3, shards are read by boto3 and kept in its ``cache_dir``.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import webdataset as wds
from torch.utils.data import default_collate

from contenders.contract import (
    BATCH,
    SHARD,
    Epoch,
    Setting,
    Slice,
    keys_below,
    read_png,
    s3_client,
    workers,
)

RANKS = False


def write(source: Path, slices: Sequence[Slice], folder: Path, encoding: str) -> None:
    """Shards of .npy files; those of PNG files are ours."""
    (folder / "shards").mkdir()
    with wds.ShardWriter(str(folder / "shards" / "train-%06d.tar"), maxcount=SHARD, verbose=0) as writer:
        for item in slices:
            image, mask = item.pixels()
            writer.write({"__key__": item.key, "image.npy": image, "mask.npy": mask})


def _open_s3(url: str, mode: str = "rb", bufsize: int = 8192) -> Any:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return s3_client().get_object(Bucket=bucket, Key=key)["Body"]


wds.gopen_schemes["s3"] = _open_s3


@contextmanager
def opened(setting: Setting, rank: int) -> Iterator[Epoch]:
    if setting.remote:
        urls = [
            f"s3://{bucket}/{key}" for bucket, key in keys_below(f"{setting.data}/shards") if "train-" in key
        ]
    else:
        urls = sorted(map(str, Path(setting.data, "shards").glob("train-*.tar")))
    image, mask = ("image.png", "mask.png") if setting.encoding == "png" else ("image.npy", "mask.npy")
    cache = setting.cache if setting.remote else None
    dataset = (
        # A worker without a shard, as there may be in a small data set, is no error.
        wds.WebDataset(urls, shardshuffle=len(urls), cache_dir=cache, empty_check=False)
        .shuffle(0 if setting.keeps else 1000)
        # The mask by Pillow as it is: "rgb8" would make three channels of its one bit.
        .decode(wds.handle_extension("mask.png", read_png), "rgb8", only=[image, mask])
        .to_tuple(image, mask)
    )
    if setting.keeps:
        dataset = dataset.mcached().shuffle(1000)
    batches = dataset.batched(BATCH, collation_fn=default_collate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader = wds.WebLoader(batches, batch_size=None, **workers(setting.processes))

    yield lambda number: iter(loader)
