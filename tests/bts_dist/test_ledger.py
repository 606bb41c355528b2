"""What the loader delivers, entered in a ledger slice by slice and held against the source's files.

A slice is known by its pixels, which are looked up among those of the source: the right sample id with another
slice's pixels is an error here, and so are a slice left out, one delivered twice and one in another batch.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, product
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from bts_dist.data import Batch, SampleSource, prefetch
from shards.config import DataConfig, HoldoutSplit, PackConfig, PhantomConfig, StoreConfig
from shards.encode import Pixels
from shards.order import EpochOrder, Ids, check_batch
from shards.pack import pack, process_map
from shards.phantom import generate
from shards.reader import PackedData, SplitIndex, SplitReader, TrainingSplit
from shards.verify import verify_source

WORLDS = (1, 2, 3, 8, 64)
THREADS = (0, 1, 2, 3, 4)
BATCHES = (70, 103, 130)
"""Global batches of which 206 slices make 3, 2 and 2 steps."""
EPOCHS = 2

Position = tuple[int, int]
"""Epoch and step."""
Ledger = dict[Position, list[tuple[str, ...]]]
"""Keys of the slices that each rank was given in each step, by rank."""


@dataclass(frozen=True)
class Data:
    """A split to be delivered, and what there is to deliver."""

    packed: PackedData
    split: TrainingSplit
    key_of: dict[str, str]
    """Key of each of the split's slices by the digest of its pixels in the source."""

    @cached_property
    def index(self) -> SplitIndex:
        return self.packed.training(self.split).index


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ledger") / "source"
    generate(PhantomConfig(patients=18, size=32, min_slices=13, max_slices=16, seed=5), folder, workers=1)
    return folder


@pytest.fixture(scope="module")
def packed_fives(source: Path) -> PackedData:
    """The source in shards of five slices."""
    shards = source.with_name("shards")
    pack(
        verify_source(str(source), StoreConfig(), 1),
        str(shards),
        source=str(source),
        split=HoldoutSplit(),
        config=PackConfig(samples_per_shard=5),
        store=StoreConfig(),
        parallel=process_map(1),
    )
    return PackedData(str(shards))


@pytest.fixture(scope="module")
def train(packed_fives: PackedData, source: Path) -> Data:
    """206 slices, one of them alone in its shard; no number of ranks but 1 and 2 divides them."""
    data = data_of(packed_fives, "train", source)
    assert len(data.key_of) == len(data.index) == 206
    assert data.index.shard_sizes[-1] == 1
    return data


@pytest.fixture(scope="module")
def val(packed_fives: PackedData, source: Path) -> Data:
    """30 slices of other patients."""
    data = data_of(packed_fives, "val", source)
    assert len(data.key_of) == len(data.index) == 30
    return data


def data_of(packed: PackedData, split: TrainingSplit, source: Path) -> Data:
    """The split, with the key of each slice as its patient's folder and file say it."""
    patients = set(packed.manifest.patients[split])
    key_of = {}
    for mask in source.glob("*/*_mask.tif"):
        image = mask.with_name(mask.name.replace("_mask", ""))
        patient, number = mask.parent.name.rpartition("_")[0], int(image.stem.rpartition("_")[2])
        if patient in patients:
            pixels = np.asarray(Image.open(image)), (np.asarray(Image.open(mask)) > 0).astype(np.uint8)
            key_of[digest(*pixels)] = f"{patient}_{number:04d}"
    return Data(packed, split, key_of)


def digest(image_HWC: Pixels, mask_HW: Pixels) -> str:
    return hashlib.sha256(image_HWC.tobytes() + mask_HW.tobytes()).hexdigest()


@dataclass(frozen=True)
class Job:
    """How slices are delivered to the ranks of one training job."""

    data: Data
    global_batch: int
    world_size: int
    threads: int
    cache: Literal["none", "memory"] = "none"

    def order(self, epoch: int) -> EpochOrder:
        return EpochOrder(self.data.index.shard_sizes, 5, epoch, self.global_batch, window_shards=3)

    def run(self, start: Position = (0, 0), num_steps: int | None = None) -> Ledger:
        """Train from ``start``, which is all that is known of what went before; stop after ``num_steps``.

        Ranks run side by side and know nothing of each other.
        """
        with ThreadPoolExecutor(16) as pool:
            by_rank = list(pool.map(lambda rank: self._run(rank, start, num_steps), range(self.world_size)))
        positions = [list(steps) for steps in by_rank]
        assert all(taken == positions[0] for taken in positions), "ranks took different steps"
        return {position: [steps[position] for steps in by_rank] for position in positions[0]}

    def _run(self, rank: int, start: Position, num_steps: int | None) -> dict[Position, tuple[str, ...]]:
        orders = {epoch: self.order(epoch) for epoch in range(start[0], EPOCHS)}
        positions = [(e, s) for e, order in orders.items() for s in range(order.num_steps) if (e, s) >= start]
        wanted = (orders[epoch].part(step, rank, self.world_size) for epoch, step in positions)
        with closing(self._batches(wanted)) as batches:
            entries = [self._entry(batch) for batch in islice(batches, num_steps)]
        return dict(zip(positions[:num_steps], entries, strict=True))

    def _batches(self, wanted: Iterable[Ids]) -> Iterator[Batch]:
        """What the training loop is given on a rank: the one place that knows how the loader is called."""
        reading = DataConfig(cache=self.cache, decode_threads=self.threads, fetch_threads=1, window_shards=3)
        reader = self.data.packed.reading(reading).training(self.data.split)
        with closing(SampleSource(reader, reading)) as source, closing(prefetch(source, wanted)) as batches:
            yield from batches

    def _entry(self, batch: Batch) -> tuple[str, ...]:
        pixels = zip(batch.image_BHWC.numpy(), batch.mask_BHW.numpy(), strict=True)
        found = tuple(self.data.key_of.get(digest(*pair), "no slice of the source") for pair in pixels)
        meant = tuple(self.data.index.key[sample] for sample in batch.ids)
        assert found == meant, "the pixels are not those that the ids mean"
        return found


def check(ledger: Ledger, data: Data, alone: Ledger) -> None:
    """Every slice once an epoch, and in every step what a single rank is given, in the same order."""
    for epoch in range(EPOCHS):
        given = Counter(
            key for (e, _), ranks in ledger.items() if e == epoch for keys in ranks for key in keys
        )
        assert given == Counter(data.key_of.values()), f"epoch {epoch}: not every slice once"
    batches = {position: sum(ranks, ()) for position, ranks in ledger.items()}
    assert batches == {position: keys for position, [keys] in alone.items()}, (
        "not the batches of a single rank"
    )
    for ranks in ledger.values():
        sizes = [len(keys) for keys in ranks]
        assert 0 < max(sizes) <= min(sizes) + 1, "some rank does more than its part"


@pytest.fixture(scope="module")
def alone(train: Data) -> dict[int, Ledger]:
    """By global batch: what a single rank without threads and without a stop is given."""
    return {batch: Job(train, batch, world_size=1, threads=0).run() for batch in BATCHES}


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("threads", THREADS)
def test_a_stop_and_another_number_of_ranks_change_nothing(
    train: Data, alone: dict[int, Ledger], world_size: int, threads: int
) -> None:
    """Stopped within the first epoch, gone on to the end of the second: every world and thread count does both."""
    place = WORLDS.index(world_size)
    batch, other = BATCHES[(place + threads) % 3], WORLDS[(place + threads) % 5]
    positions = list(alone[batch])
    num_steps = 1 + threads % (len(positions) // EPOCHS - 1)
    before = Job(train, batch, world_size, threads).run(num_steps=num_steps)
    after = Job(train, batch, other, threads).run(start=positions[num_steps])
    assert list(before) + list(after) == positions
    check(before | after, train, alone[batch])


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_another_split_of_another_size(val: Data, world_size: int) -> None:
    alone = Job(val, 13, world_size=1, threads=0).run()
    check(Job(val, 13, world_size, threads=world_size // 2).run(), val, alone)


@pytest.mark.parametrize("threads", [0, 2])
def test_ranks_that_share_decoded_slices(train: Data, alone: dict[int, Ledger], threads: int) -> None:
    check(Job(train, 70, 8, threads, cache="memory").run(), train, alone[70])


@pytest.mark.parametrize("batch", [7, 70, 100, 206, 1000])
@pytest.mark.parametrize("shard_sizes", [(5,) * 41 + (1,), (206,), (0, 3, 200, 0, 2, 1)])
def test_ids_after_every_stop_in_every_pair_of_worlds(shard_sizes: tuple[int, ...], batch: int) -> None:
    """No pixels here: all worlds, stopped after every step, with or without a change of world."""
    parts = {world_size: ids_by_step(shard_sizes, batch, world_size) for world_size in WORLDS}
    for (before, after), stop in product(product(WORLDS, WORLDS), range(len(parts[1]))):
        steps = parts[before][:stop] + parts[after][stop:]
        assert sorted(sample for step in steps for sample in step) == list(range(206))
        assert steps == parts[1]


def ids_by_step(shard_sizes: tuple[int, ...], batch: int, world_size: int) -> list[list[int]]:
    order = EpochOrder(shard_sizes, 5, 0, batch, window_shards=3)
    return [
        [int(sample) for rank in range(world_size) for sample in order.part(step, rank, world_size)]
        for step in range(order.num_steps)
    ]


def test_a_world_that_leaves_a_rank_without_a_sample_is_refused() -> None:
    order = EpochOrder((206,), 0, 0, global_batch=64)
    assert min(len(order.part(step, rank, 64)) for step in range(4) for rank in range(64)) == 0
    needed = (
        "206 training samples in global batches of 64 .* only 51 for 64 workers; lower cluster.workers, raise"
    )
    with pytest.raises(ValueError, match=needed):
        check_batch(206, 64, 64)


def wrong_pixels(patch: pytest.MonkeyPatch) -> None:
    read = SplitReader.read_resized
    patch.setattr(
        SplitReader,
        "read_resized",
        lambda self, sample, *out: read(self, 18 if sample == 17 else sample, *out),
    )


def mask_of_another(patch: pytest.MonkeyPatch) -> None:
    read = SplitReader.read_mask
    patch.setattr(
        SplitReader, "read_mask", lambda self, sample, *out: read(self, 18 if sample == 17 else sample, *out)
    )


def part_too_long(patch: pytest.MonkeyPatch) -> None:
    """The first rank takes the second one's first sample as well."""
    bounds = EpochOrder._part_bounds

    def part_bounds(order: EpochOrder, step: int, rank: int, world_size: int) -> tuple[int, int]:
        start, stop = bounds(order, step, rank, world_size)
        return start, stop + (rank == 0)

    patch.setattr(EpochOrder, "_part_bounds", part_bounds)


def parts_dealt_out(patch: pytest.MonkeyPatch) -> None:
    """Each slice once, but not in the order of a single rank."""
    part = EpochOrder.part
    patch.setattr(EpochOrder, "part", lambda order, step, rank, world: part(order, step, 0, 1)[rank::world])


def batch_left_out(patch: pytest.MonkeyPatch) -> None:
    batches = Job._batches

    def all_but_the_first(job: Job, wanted: Iterable[Ids]) -> Iterator[Batch]:
        yield from islice(batches(job, wanted), 1, None)

    patch.setattr(Job, "_batches", all_but_the_first)


def epoch_forgotten(patch: pytest.MonkeyPatch) -> None:
    """After the stop the order is that of another epoch."""
    order = Job.order
    patch.setattr(Job, "order", lambda job, epoch: order(job, epoch + (job.world_size == 3)))


@pytest.mark.parametrize(
    ("spoil", "noticed"),
    [
        (wrong_pixels, "the pixels are not those"),
        (mask_of_another, "the pixels are not those"),
        (part_too_long, "not every slice once"),
        (parts_dealt_out, "not the batches of a single rank"),
        (batch_left_out, "shorter"),
        (epoch_forgotten, "not every slice once"),
    ],
)
def test_the_ledger_notices(
    train: Data,
    alone: dict[int, Ledger],
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[pytest.MonkeyPatch], None],
    noticed: str,
) -> None:
    spoil(monkeypatch)
    with pytest.raises((AssertionError, ValueError), match=noticed):
        check(
            Job(train, 70, 2, 0).run(num_steps=2) | Job(train, 70, 3, 1).run(start=(0, 2)), train, alone[70]
        )
