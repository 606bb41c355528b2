"""This project's loader: ``SampleSource`` over packed shards, each rank with its part of every batch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bts_dist.data import SampleSource, prefetch
from contenders.contract import BATCH, SHARD, Batch, Epoch, Setting, Slice
from shards.config import DataConfig, HoldoutSplit, PackConfig, StoreConfig
from shards.order import EpochOrder
from shards.pack import pack
from shards.reader import PackedData
from shards.verify import verify_source

RANKS = True


def write(source: Path, slices: Sequence[Slice], folder: Path, encoding: str) -> None:
    """Pack the whole source; ``slices`` are its training split."""
    report = verify_source(str(source), StoreConfig(), workers=2, progress=None)
    config = PackConfig.model_validate({"encoding": encoding, "samples_per_shard": SHARD, "workers": 2})
    pack(report, str(folder), source=str(source), split=HoldoutSplit(), config=config, store=StoreConfig())


@contextmanager
def opened(setting: Setting, rank: int) -> Iterator[Epoch]:
    config = DataConfig(shards=setting.data, cache="memory" if setting.keeps else "disk", decode_threads=1)
    reader = PackedData(setting.data, StoreConfig(cache_dir=setting.cache), config).training("train")
    source = SampleSource(reader, config)

    def epoch(number: int) -> Iterator[Batch]:
        order = EpochOrder(reader.index.shard_sizes, 0, number, BATCH, config.window_shards)
        parts = (order.part(step, rank, setting.processes) for step in range(order.num_steps))
        for batch in prefetch(source, parts):
            yield batch.image_BHWC, batch.mask_BHW

    try:
        yield epoch
    finally:
        source.close()
