"""Batches for the device: decoded ahead of the step, in the exact order of ``shards.order``."""

import queue
import threading
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bts_dist.cache import SampleCache, open_cache
from shards.config import DataConfig
from shards.encode import Pixels
from shards.order import Ids
from shards.reader import SplitReader

CPU = torch.device("cpu")

_STEPS_AHEAD = 1024
"""Steps whose shards are looked up ahead: some memory, however few shards there are."""


@dataclass(frozen=True)
class Batch:
    """Samples as they lie in the shards: images and masks uint8, un-normalised."""

    ids: Ids
    image_BHWC: Tensor
    mask_BHW: Tensor
    mean_BC: Tensor
    """Normalisation figures of each sample's volume, float32.  ``std_BC`` likewise."""
    std_BC: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Normalised images (B, 3, H, W) and truths (B, 1, H, W), float32 on ``device``."""
        image = self.image_BHWC.to(device, non_blocking=True).permute(0, 3, 1, 2).float()
        mean = self.mean_BC.to(device, non_blocking=True)[:, :, None, None]
        std = self.std_BC.to(device, non_blocking=True)[:, :, None, None]
        truth = self.mask_BHW.to(device, non_blocking=True).unsqueeze(1).float()
        return (image - mean) / std, truth


class SampleSource:
    """Decodes samples of one split by id at the model's image size, keeping them as ``data.cache`` says."""

    def __init__(self, reader: SplitReader, config: DataConfig, device: torch.device = CPU) -> None:
        """For samples that go to ``device``.  Raises ``InputError`` where they do not fit into the cache asked for."""
        self.reader = reader
        self._pins = device.type == "cuda"
        self.size = config.image_size
        self.lookahead = 2 * config.window_shards
        """Shards that are fetched ahead of the step: those of a window, and those of the next one."""
        height, width = reader.native_size if self.size is None else (self.size, self.size)
        self.sides = (height, width)
        """Pixels that the model sees."""
        self._cache, self.note = open_cache(reader, config, self.sides, device)
        self._threads = config.decode_threads
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode") if self._threads else None

    @property
    def in_background(self) -> bool:
        """Whether batches are decoded ahead of the step."""
        return self._pool is not None

    def batch(self, ids: Ids) -> Batch:
        """Decode the samples, in order.  Raises what ``SplitReader.read`` raises."""
        index = self.reader.index
        figures = (self._pinned(torch.from_numpy(column[ids])) for column in (index.mean, index.std))
        image, mask = self._decoded(ids) if self._cache is None else self._cached(self._cache, ids)
        return Batch(ids, self._pinned(image), self._pinned(mask), *figures)

    def native_mask(self, sample: int) -> Pixels:
        """The truth of a sample at native size, whatever size the model sees; uint8 (H, W) of {0, 1}."""
        return self.reader.read_mask(sample)

    def shards_of(self, ids: Ids) -> list[int]:
        """The shards in which samples lie that have to be decoded."""
        if self._cache is not None:
            ids = ids[~self._cache.held(ids)]
        shards: list[int] = np.unique(self.reader.index.shard[ids]).tolist()
        return shards

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self.reader.close()
        if self._cache is not None:
            self._cache.close()

    def _cached(self, cache: SampleCache, ids: Ids) -> tuple[Tensor, Tensor]:
        held = cache.held(ids)
        if held.all():
            return cache.take(ids)
        decoded = self._decode(ids[~held])
        cache.put(ids[~held], *decoded)
        if not held.any():
            return torch.from_numpy(decoded[0]), torch.from_numpy(decoded[1])
        # Not all out of the cache: what it had no room for is not there.
        image, mask = cache.take(ids)
        rows = torch.from_numpy(np.flatnonzero(~held)).to(image.device)
        for kept, fresh in zip((image, mask), decoded, strict=True):
            kept[rows] = torch.from_numpy(fresh).to(kept.device)
        return image, mask

    def _pinned(self, tensor: Tensor) -> Tensor:
        """A tensor that the GPU, where the samples go to one, can fetch while it computes."""
        return tensor.pin_memory() if self._pins and tensor.device == CPU else tensor

    def _decoded(self, ids: Ids) -> tuple[Tensor, Tensor]:
        image, mask = self._decode(ids)
        return torch.from_numpy(image), torch.from_numpy(mask)

    def _decode(self, ids: Ids) -> tuple[Pixels, Pixels]:
        images = np.empty((len(ids), *self.sides, 3), np.uint8)
        masks = np.empty((len(ids), *self.sides), np.uint8)

        def decode(rows: Ids) -> None:
            for row in rows:
                self.reader.read_resized(int(ids[row]), images[row], masks[row])

        if self._pool is None:
            decode(np.arange(len(ids)))
        else:
            # Each thread its own rows: handing over single samples costs as much as a tenth of decoding one.
            list(self._pool.map(decode, np.array_split(np.arange(len(ids)), self._threads)))
        return images, masks


def prefetch(source: SampleSource, wanted: Iterable[Ids], depth: int = 2) -> Generator[Batch, None, None]:
    """Batches of the wanted ids, up to ``depth`` of them decoded ahead, and their shards fetched further ahead.

    ``wanted`` may go on over many epochs: the next one's data is on its way while this one is validated.  An error
    is raised at the batch where it happened; leaving the iterator early ends the work.
    """
    announced = look_ahead(source, wanted)
    if not source.in_background:
        yield from map(source.batch, announced)
        return
    done: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: Batch | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                done.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for ids in announced:
                if not put(source.batch(ids)):
                    return
            put(None)
        except BaseException as error:  # noqa: BLE001 - handed over to the consumer, who raises it
            put(error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := done.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


def look_ahead(source: SampleSource, wanted: Iterable[Ids]) -> Iterator[Ids]:
    """The wanted ids as they are, while the shards of those that follow are being fetched.

    It looks so far ahead that two windows of shards are under way, and never further than ``_STEPS_AHEAD``.
    """
    upcoming: deque[tuple[Ids, list[int]]] = deque()
    under_way: Counter[int] = Counter()
    steps = iter(wanted)
    while True:
        while len(under_way) < source.lookahead and len(upcoming) < _STEPS_AHEAD:
            ids = next(steps, None)
            if ids is None:
                break
            shards = source.shards_of(ids)
            source.reader.announce(shard for shard in shards if shard not in under_way)
            under_way.update(shards)
            upcoming.append((ids, shards))
        if not upcoming:
            return
        ids, shards = upcoming.popleft()
        under_way.subtract(shards)
        under_way += Counter()  # drops those at nought
        yield ids
