"""Batches: the right samples in the wanted order, cached or not, and errors where they happen."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from bts_dist.cache import MemoryCache
from bts_dist.config import Config
from bts_dist.data import Batch, SampleSource, look_ahead, prefetch
from shards.config import DataConfig
from shards.errors import InputError
from shards.order import EpochOrder, Ids
from shards.reader import PackedData


def source(packed: Path, **settings: object) -> SampleSource:
    config = DataConfig(**settings)  # type: ignore[arg-type]
    return SampleSource(PackedData(str(packed), data=config).training("train"), config)


def ids(*numbers: int) -> Ids:
    return np.array(numbers, np.int64)


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("cache", ["none", "disk", "memory", "auto"])
def test_a_batch_holds_the_samples_in_order(packed: Path, cache: str, threads: int) -> None:
    made = source(packed, cache=cache, decode_threads=threads)
    for wanted in (ids(5, 0, 9), ids(9, 5, 2), ids(0)):
        batch = made.batch(wanted)
        assert len(batch) == len(wanted)
        assert batch.image_BHWC.dtype == batch.mask_BHW.dtype == torch.uint8
        for row, sample in enumerate(wanted):
            image, mask = made.reader.read(int(sample))
            assert np.array_equal(batch.image_BHWC[row].numpy(), image)
            assert np.array_equal(batch.mask_BHW[row].numpy(), mask)
            assert np.array_equal(batch.mean_BC[row].numpy(), made.reader.index.mean[sample])
            assert np.array_equal(batch.std_BC[row].numpy(), made.reader.index.std[sample])
    made.close()


def test_a_cached_sample_is_decoded_once(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    made = source(packed, cache="memory")
    read = made.reader.read_resized
    monkeypatch.setattr(made.reader, "read_resized", lambda i, *out: (decoded.append(i), read(i, *out))[1])
    for wanted in (ids(1, 2), ids(2, 3), ids(3, 1)):
        made.batch(wanted)
    assert sorted(decoded) == [1, 2, 3]
    other = source(packed, cache="memory")  # as another worker of the node
    monkeypatch.setattr(other.reader, "read_resized", None)
    assert torch.equal(other.batch(ids(3, 1)).image_BHWC, made.batch(ids(3, 1)).image_BHWC)
    made.close()
    other.close()


def test_samples_that_the_cache_has_no_room_for_are_delivered_too(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = source(packed, cache="memory")
    assert isinstance(made._cache, MemoryCache)
    kept = made._cache.memory
    put = kept.put
    monkeypatch.setattr(kept, "put", lambda ids, *samples: put(ids[:1], *(s[:1] for s in samples)))
    for wanted in (ids(3, 1), ids(1, 5, 3, 0), ids(0, 5)):
        batch = made.batch(wanted)
        for row, sample in enumerate(wanted):
            image, mask = made.reader.read(int(sample))
            assert np.array_equal(batch.image_BHWC[row].numpy(), image)
            assert np.array_equal(batch.mask_BHW[row].numpy(), mask)
    assert kept.held.sum() == 3
    made.close()


def test_a_batch_keeps_its_samples_when_the_cache_is_used_again(packed: Path) -> None:
    made = source(packed)
    batch = made.batch(ids(0))
    batch.image_BHWC.zero_()
    assert made.batch(ids(0)).image_BHWC.any()


def test_the_model_sees_its_size_and_truth_stays_native(packed: Path) -> None:
    made = source(packed, image_size=16)
    sample = int(made.reader.index.tumour_pixels.argmax())
    batch = made.batch(ids(sample))
    assert batch.image_BHWC.shape == (1, 16, 16, 3)
    assert batch.mask_BHW.shape == (1, 16, 16)
    assert made.native_mask(sample).shape == (32, 32)
    assert np.array_equal(made.native_mask(sample), made.reader.read_mask(sample))


def test_images_are_normalised_by_their_volume() -> None:
    batch = Batch(
        ids(4),
        torch.full((1, 2, 3, 3), 10, dtype=torch.uint8),
        torch.tensor([[[0, 1, 0], [1, 0, 0]]], dtype=torch.uint8),
        torch.tensor([[10.0, 4.0, 0.0]]),
        torch.tensor([[1.0, 2.0, 5.0]]),
    )
    image, truth = batch.to(torch.device("cpu"))
    assert image.shape == (1, 3, 2, 3)
    assert [float(image[0, c].unique()) for c in range(3)] == [0.0, 3.0, 2.0]
    assert truth.shape == (1, 1, 2, 3)
    assert truth.dtype == image.dtype == torch.float32
    assert truth.sum() == 2


@pytest.mark.parametrize("threads", [0, 1])
def test_prefetched_batches_come_in_order(packed: Path, threads: int) -> None:
    made = source(packed, decode_threads=threads)
    wanted = [ids(i, (i + 7) % 20) for i in range(20)]
    assert [batch.ids.tolist() for batch in prefetch(made, wanted)] == [w.tolist() for w in wanted]


def test_an_error_is_raised_at_its_batch(
    packed: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = source(packed)
    batch = made.batch

    def failing(wanted: Ids) -> Batch:
        if wanted[0] == 2:
            raise InputError("shard 2 is damaged")
        return batch(wanted)

    monkeypatch.setattr(made, "batch", failing)
    batches = prefetch(made, [ids(i) for i in range(5)])
    assert [next(batches).ids.tolist() for _ in range(2)] == [[0], [1]]
    with pytest.raises(InputError, match="shard 2 is damaged"):
        next(batches)


def test_leaving_early_ends_the_thread(packed: Path) -> None:
    made = source(packed)
    running = prefetch(made, (ids(i % 20) for i in range(10**6)))
    next(running)
    assert "prefetch" in {thread.name for thread in threading.enumerate()}
    running.close()
    assert "prefetch" not in {thread.name for thread in threading.enumerate()}


def test_no_more_than_the_depth_is_decoded_ahead(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = source(packed)
    batch, asked = made.batch, []
    monkeypatch.setattr(made, "batch", lambda wanted: (asked.append(wanted), batch(wanted))[1])
    running = prefetch(made, (ids(i) for i in range(20)), depth=2)
    for _ in range(3):
        next(running)
    # Two wait in the queue and one in the hand of the thread, beyond the three that were taken.
    assert len(asked) <= 3 + 2 + 1
    running.close()


def test_shards_are_fetched_two_windows_ahead_and_into_the_next_epoch(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = source(packed, cache="none", window_shards=1)
    sizes = made.reader.index.shard_sizes
    assert len(sizes) >= 4
    announced: list[int] = []
    monkeypatch.setattr(made.reader, "announce", announced.extend)
    orders = [EpochOrder(sizes, seed=1, epoch=epoch, global_batch=4, window_shards=1) for epoch in (0, 1)]
    wanted = [order.batch(step) for order in orders for step in range(order.num_steps)]
    running = look_ahead(made, wanted)
    in_order = list(dict.fromkeys(int(made.reader.index.shard[i]) for ids in wanted for i in ids))
    for taken, step_ids in enumerate(running, start=1):
        assert step_ids is wanted[taken - 1]
        needed = {int(shard) for shard in made.reader.index.shard[step_ids]}
        assert needed <= set(announced)
        if taken == 1:
            assert announced[:2] == in_order[:2]
            assert len(announced) <= 4  # a batch may lie across two shards
        if (
            taken == orders[0].num_steps
        ):  # the last step of an epoch: the next one's first shard is on its way
            assert len(announced) > len(sizes)
    assert taken == len(wanted)
    made.close()


def test_what_is_cached_is_not_fetched_again(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = source(packed, cache="memory")
    wanted = [np.arange(len(made.reader.index))]
    assert len(list(prefetch(made, wanted))) == 1
    announced: list[int] = []
    monkeypatch.setattr(made.reader, "announce", announced.extend)
    assert len(list(prefetch(made, wanted))) == 1
    assert announced == []
    made.close()
