import tracemalloc
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import order
from shards.order import EpochOrder, check_batch, hash64, permutation

WORLDS = (1, 2, 3, 8, 64)

ORDERS = st.builds(
    EpochOrder,
    shard_sizes=st.lists(st.integers(0, 12), min_size=1, max_size=30).filter(any).map(tuple),
    seed=st.integers(0, 2**63),
    epoch=st.integers(0, 1000),
    global_batch=st.integers(1, 70),
    window_shards=st.integers(1, 9),
)


def walked(epoch: EpochOrder) -> np.ndarray:
    return np.concatenate([epoch.batch(step) for step in range(epoch.num_steps)])


@given(ORDERS)
def test_an_epoch_has_every_sample_once(epoch: EpochOrder) -> None:
    ids = walked(epoch)
    assert ids.dtype == np.int64
    np.testing.assert_array_equal(np.sort(ids), np.arange(sum(epoch.shard_sizes)))


@given(ORDERS)
def test_ranks_share_out_the_same_global_batches_in_worlds_of_any_size(epoch: EpochOrder) -> None:
    for step in range(epoch.num_steps):
        batch = epoch.batch(step)
        for world_size in WORLDS:
            parts = [epoch.part(step, rank, world_size) for rank in range(world_size)]
            np.testing.assert_array_equal(np.concatenate(parts), batch)
            sizes = [len(part) for part in parts]
            assert max(sizes) - min(sizes) <= 1


@given(ORDERS)
def test_steps_are_alike_and_no_larger_than_the_global_batch(epoch: EpochOrder) -> None:
    sizes = [len(epoch.batch(step)) for step in range(epoch.num_steps)]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= epoch.global_batch
    assert len(sizes) == -(-sum(epoch.shard_sizes) // epoch.global_batch)


@given(ORDERS, st.randoms(use_true_random=False))
def test_jumping_to_a_step_gives_what_walking_there_gives(epoch: EpochOrder, random) -> None:
    ids = walked(epoch)
    steps = list(range(epoch.num_steps))
    random.shuffle(steps)
    for step in steps[:10]:
        start, stop = epoch.bounds(step)
        np.testing.assert_array_equal(replace(epoch).batch(step), ids[start:stop])


@given(ORDERS)
def test_a_window_reads_only_its_own_shards(epoch: EpochOrder) -> None:
    shard_of = np.repeat(np.arange(len(epoch.shard_sizes)), epoch.shard_sizes)[walked(epoch)]
    last_seen = {int(shard): place for place, shard in enumerate(shard_of)}
    first_seen = {int(shard): place for place, shard in reversed(list(enumerate(shard_of)))}
    for place in range(len(shard_of)):
        live = [s for s in last_seen if first_seen[s] <= place <= last_seen[s]]
        assert len(live) <= epoch.window_shards


def shards_in_turn(epoch: EpochOrder, parts: Iterable[np.ndarray]) -> list[int]:
    """The shards of the samples in the parts, each where it is first met."""
    shard_of = np.repeat(np.arange(len(epoch.shard_sizes)), epoch.shard_sizes)
    return list(dict.fromkeys(int(shard_of[sample]) for part in parts for sample in part))


@settings(max_examples=50)
@given(ORDERS, st.data())
def test_shards_are_named_in_the_order_in_which_walking_meets_them(epoch: EpochOrder, data) -> None:
    first = data.draw(st.integers(0, epoch.num_steps))
    steps = range(first, epoch.num_steps)
    assert list(epoch.shards_from(first)) == shards_in_turn(epoch, map(epoch.batch, steps))
    world_size = data.draw(st.sampled_from(WORLDS))
    rank = data.draw(st.integers(0, world_size - 1))
    mine = [epoch.part(step, rank, world_size) for step in steps]
    assert list(epoch.shards_from(first, rank, world_size)) == shards_in_turn(epoch, mine)


def test_naming_shards_ahead_needs_a_windows_memory() -> None:
    """A thousand shards are drawn at the far end of 10^8 samples in less than two bytes for each shard there is."""
    epoch = EpochOrder(np.full(10**6, 100, np.int32), 0, 0, 1000)
    tracemalloc.start()
    assert len(set(islice(epoch.shards_from(90_000), 1000))) == 1000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(0, 100))
def test_epochs_and_seeds_differ(seed: int, epoch: int) -> None:
    sizes = (16,) * 8
    here = walked(EpochOrder(sizes, seed, epoch, 32))
    assert (here != walked(EpochOrder(sizes, seed, epoch + 1, 32))).any()
    assert (here != walked(EpochOrder(sizes, seed + 1, epoch, 32))).any()


def test_samples_of_different_shards_meet_in_one_batch() -> None:
    epoch = EpochOrder((50,) * 8, seed=0, epoch=0, global_batch=40)
    for step in range(epoch.num_steps):
        assert len(set(epoch.batch(step) // 50)) >= 6


@pytest.mark.parametrize("num", [0, 1, 2, 1000, order._BLOCK, 2 * order._BLOCK + 1])
@pytest.mark.parametrize("key", [(), (5,), (2**64 - 1, 3)])
def test_a_permutation_lists_the_numbers_by_their_hashes(num: int, key: tuple[int, ...]) -> None:
    hashes = hash64(*key, np.arange(num, dtype=np.uint64))
    assert len(np.unique(hashes)) == num
    made = permutation(num, *key)
    assert made.dtype == np.int64
    np.testing.assert_array_equal(made, np.argsort(hashes, kind="stable"))


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1))
def test_a_hash_tells_its_word(words: list[int]) -> None:
    """Hence no two words have the same one, and sorting by hashes meets no ties."""
    np.testing.assert_array_equal(
        order._unmix(hash64(np.array(words, np.uint64))), np.array(words, np.uint64)
    )


def test_every_permutation_is_about_as_likely() -> None:
    counts: dict[tuple[int, ...], int] = {}
    for key in range(2400):
        drawn = tuple(int(i) for i in permutation(4, 7, key))
        counts[drawn] = counts.get(drawn, 0) + 1
    assert len(counts) == 24
    assert sum((n - 100) ** 2 / 100 for n in counts.values()) < 50  # chi-square, 23 degrees: p is 0.0009


def test_one_word_hashes_to_the_published_splitmix64() -> None:
    # First outputs of the reference generator from the seeds 0 and 1234567.
    assert int(hash64(0)) == 0xE220A8397B1DCDAF
    assert int(hash64(1234567)) == 6457827717110365317


def test_the_order_is_the_same_on_every_platform() -> None:
    """Pinned: a change would silently move every run's position in its data."""
    assert int(hash64(1, 2, 3)) == 0xD0734750FDE362B3
    assert hash64(5, np.arange(3, dtype=np.uint64)).tolist() == [
        18074882946671919669,
        16247700015443706586,
        2611768881034074630,
    ]
    assert permutation(10, 1, 2).tolist() == [8, 7, 5, 6, 1, 4, 3, 0, 2, 9]
    assert EpochOrder((3, 4, 5), 7, 1, 6, window_shards=2).batch(1).tolist() == [10, 2, 6, 3, 4, 5]


@given(ORDERS)
def test_sizes_may_come_as_an_array(epoch: EpochOrder) -> None:
    sizes = np.array(epoch.shard_sizes, np.int32)
    same = EpochOrder(sizes, epoch.seed, epoch.epoch, epoch.global_batch, epoch.window_shards)
    np.testing.assert_array_equal(walked(same), walked(epoch))
    assert same._sizes is sizes


@pytest.mark.parametrize("size", [10_000, 1024, 256])
def test_a_thousand_million_samples_are_planned_in_20_bytes_a_shard(size: int) -> None:
    """From nothing to a rank's part of a step, sizes of the shards included."""
    num_shards = 10**9 // size
    tracemalloc.start()
    epoch = EpochOrder(np.full(num_shards, size, np.int32), seed=3, epoch=2, global_batch=16_384)
    part = epoch.part(epoch.num_steps * 2 // 3, rank=700, world_size=1024)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    of_a_window = 64 * 8 * size
    assert peak < 20 * num_shards + of_a_window < 100e6
    assert kept < 10 * num_shards + of_a_window
    parts = [epoch.part(epoch.num_steps * 2 // 3, rank, world_size=1024) for rank in range(1024)]
    np.testing.assert_array_equal(parts[700], part)
    batch = np.concatenate(parts)
    assert len(np.unique(batch)) == len(batch)
    assert 16_383 <= len(batch) <= 16_384
    assert 0 <= batch.min() <= batch.max() < num_shards * size


def test_a_window_far_into_the_data_holds_its_shards_whole() -> None:
    """Ids beyond 32 bits, at a position beyond 32 bits."""
    size = 50_000
    epoch = EpochOrder(np.full(100_000, size, np.int32), 1, 1, global_batch=2 * size, window_shards=2)
    step = next(s for s in reversed(range(epoch.num_steps)) if epoch.batch(s).max() > 2**32)
    assert epoch.bounds(step)[0] > 2**32
    shards = sorted(islice(epoch.shards_from(step), 2))
    whole = np.concatenate([np.arange(shard * size, (shard + 1) * size) for shard in shards])
    np.testing.assert_array_equal(np.sort(epoch.batch(step)), whole)


def test_hashes_tell_the_order_of_words_apart() -> None:
    assert len({int(hash64(*words)) for words in ((1, 2), (2, 1), (1, 2, 0), (0, 1, 2), (3,), (1,))}) == 6


def test_a_step_beyond_the_epoch_is_refused() -> None:
    epoch = EpochOrder((10,), 0, 0, 4)
    for step in (-1, 3):
        with pytest.raises(IndexError, match=f"step {step} of an epoch of 3"):
            epoch.batch(step)
    assert list(epoch.shards_from(3)) == []
    for step in (-1, 4):
        with pytest.raises(IndexError, match=f"step {step} of an epoch of 3"):
            epoch.shards_from(step)


def test_no_samples_are_no_steps() -> None:
    assert EpochOrder((), 0, 0, 4).num_steps == 0
    assert EpochOrder((0, 0), 0, 0, 4).num_steps == 0


@given(st.integers(0, 60), st.integers(1, 20), st.integers(1, 20))
def test_the_check_agrees_with_what_ranks_get(num: int, global_batch: int, world_size: int) -> None:
    epoch = EpochOrder((num,), 0, 0, global_batch)
    sizes = [len(epoch.part(s, r, world_size)) for s in range(epoch.num_steps) for r in range(world_size)]
    if sizes and min(sizes) > 0:
        check_batch(num, global_batch, world_size)
    else:
        with pytest.raises(ValueError, match=rf"{num} training samples .* for {world_size} workers; lower"):
            check_batch(num, global_batch, world_size)
