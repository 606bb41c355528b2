"""Where decoded samples are kept: what fits, what is said, and that nothing of it changes a sample."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from bts_dist import cache
from bts_dist.cache import DeviceCache, MemoryCache, available_memory, open_cache
from shards.config import DataConfig, StoreConfig
from shards.errors import InputError
from shards.memory import private_memory
from shards.reader import PackedData, SplitReader

CPU = torch.device("cpu")
SHAPE = (32, 32)


@pytest.fixture
def reader(packed: Path) -> SplitReader:
    return PackedData(str(packed)).training("train")


def config(kind: str) -> DataConfig:
    return DataConfig(cache=kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make", [lambda: MemoryCache(private_memory(6, 4, 3)), lambda: DeviceCache(6, 4, 3, CPU)]
)
def test_what_is_put_can_be_taken_in_any_order(make) -> None:  # type: ignore[no-untyped-def]
    kept = make()
    ids = np.array([4, 1])
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 3, 3), np.uint8)
    masks = np.random.default_rng(1).integers(0, 2, (2, 4, 3), np.uint8)
    assert kept.held(np.arange(6)).tolist() == [False] * 6
    kept.put(ids, images, masks)
    assert kept.held(np.arange(6)).tolist() == [False, True, False, False, True, False]
    image, mask = kept.take(np.array([1, 4, 1]))
    assert np.array_equal(image.numpy(), images[[1, 0, 1]])
    assert np.array_equal(mask.numpy(), masks[[1, 0, 1]])
    image.zero_()
    assert kept.take(ids)[0].any(), "what is taken is a copy"
    kept.close()


def test_nothing_is_kept_when_told_so(reader: SplitReader) -> None:
    assert open_cache(reader, config("none"), SHAPE, CPU) == (
        None,
        "cache none: shards are read where they are",
    )
    assert open_cache(reader, config("disk"), SHAPE, CPU) == (
        None,
        "cache disk: shards are read where they are",
    )


def test_auto_takes_memory_and_says_so(reader: SplitReader) -> None:
    kept, note = open_cache(reader, config("auto"), SHAPE, CPU)
    assert isinstance(kept, MemoryCache)
    assert kept.memory.shared
    num = len(reader.index)
    assert (
        note == f"cache auto → memory: {num:,} samples of 32 × 32 px, 0.00 GiB shared by the node's workers"
    )
    kept.close()


def test_auto_keeps_nothing_that_does_not_fit_in_half_of_the_free_memory(
    reader: SplitReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = cache.sample_bytes(len(reader.index), *SHAPE)
    monkeypatch.setattr(cache, "available_memory", lambda: 2 * needed - 1)
    kept, note = open_cache(reader, config("auto"), SHAPE, CPU)
    assert kept is None
    assert note.startswith("cache auto → none: ")
    monkeypatch.setattr(cache, "available_memory", lambda: 2 * needed)
    kept, _ = open_cache(reader, config("auto"), SHAPE, CPU)
    assert kept is not None
    # The second worker of a node finds the memory reserved, and joins.
    monkeypatch.setattr(cache, "available_memory", lambda: 0)
    other, note = open_cache(reader, config("auto"), SHAPE, CPU)
    assert other is not None
    assert "auto → memory" in note
    kept.close()
    other.close()


def no_sharing(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_where_nothing_can_be_shared_each_worker_keeps_its_own(
    reader: SplitReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "shared_memory", no_sharing)
    kept, note = open_cache(reader, config("memory"), SHAPE, CPU)
    assert isinstance(kept, MemoryCache)
    assert not kept.memory.shared
    assert note.endswith("in each worker (nothing can be shared: no space left on device)")


def test_memory_that_is_not_there_is_refused(reader: SplitReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "shared_memory", no_sharing)
    monkeypatch.setattr(cache, "available_memory", lambda: 1000)
    with pytest.raises(
        InputError, match=r"data\.cache=memory: .* 0\.00 GiB of memory are free; set data\.cache"
    ):
        open_cache(reader, config("memory"), SHAPE, CPU)


def test_a_device_cache_needs_a_device_with_room(
    reader: SplitReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"data\.cache=device needs an accelerator and there is none"):
        open_cache(reader, config("device"), SHAPE, CPU)
    monkeypatch.setattr(cache, "_device_room", lambda _: 1000)
    with pytest.raises(
        InputError, match=r"data\.cache=device: .*cuda:0 has 0\.00 GiB free; set data\.cache=auto"
    ):
        open_cache(reader, config("device"), SHAPE, torch.device("cuda", 0))


def test_other_content_and_another_size_are_kept_apart(packed: Path, reader: SplitReader) -> None:
    val = PackedData(str(packed)).training("val")
    names = {cache._name(reader, SHAPE), cache._name(reader, (16, 16)), cache._name(val, SHAPE)}
    assert len(names) == 3
    assert cache._name(PackedData(str(packed)).training("train"), SHAPE) in names


def test_free_memory_is_within_what_the_machine_has() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < available_memory() <= total


def test_shards_fetched_from_elsewhere_are_spoken_of(reader: SplitReader) -> None:
    reader.remote = True
    assert open_cache(reader, config("none"), SHAPE, CPU)[1].endswith("fetched whenever they are needed")
    reader.on_disk = True
    assert open_cache(reader, config("disk"), SHAPE, CPU)[1].endswith("shards stay on this node's disk")


def test_none_keeps_no_shard_on_disk(packed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = PackedData(str(packed), StoreConfig(cache_dir=str(tmp_path)), config("none"))
    assert not data.training("train").on_disk
    assert not data.reading(config("disk")).training("train").on_disk, "a folder needs no copy"
