"""Batches for the device: decoded ahead of the step, in the exact order of ``shards.order``."""

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.config import DataConfig
from shards.encode import Pixels
from shards.order import Ids
from shards.reader import SplitReader


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
    """Decodes samples of one split by id at the model's image size, keeping them when told to cache.

    The cache is filled as samples are first asked for.  One slot is written by one thread at a time, and writing
    the same sample twice writes the same bytes.
    """

    def __init__(self, reader: SplitReader, config: DataConfig) -> None:
        self.reader = reader
        self.size = config.image_size
        self._pool = ThreadPoolExecutor(config.decode_threads, thread_name_prefix="decode")
        height, width = reader.native_size if self.size is None else (self.size, self.size)
        self._shape = (height, width)
        num = len(reader.index) if config.cache == "memory" else 0
        self._images: Pixels = np.empty((num, height, width, 3), np.uint8)
        self._masks: Pixels = np.empty((num, height, width), np.uint8)
        self._filled = np.zeros(num, bool)
        self._native_masks: dict[int, Pixels] = {}

    def batch(self, ids: Ids) -> Batch:
        """Decode the samples, in order.  Raises what ``SplitReader.read`` raises."""
        if len(self._filled):
            missing = ids[~self._filled[ids]]
            for sample, (image, mask) in zip(missing, self._decode(missing), strict=True):
                self._images[sample], self._masks[sample] = image, mask
                self._filled[sample] = True
            images, masks = self._images[ids], self._masks[ids]
        else:
            images = np.empty((len(ids), *self._shape, 3), np.uint8)
            masks = np.empty((len(ids), *self._shape), np.uint8)
            for row, (image, mask) in enumerate(self._decode(ids)):
                images[row], masks[row] = image, mask
        index = self.reader.index
        tensors = (images, masks, index.mean[ids], index.std[ids])
        return Batch(ids, *(_to_tensor(t) for t in tensors))

    def native_mask(self, sample: int) -> Pixels:
        """The truth of a sample at native size, whatever size the model sees; uint8 (H, W) of {0, 1}."""
        mask = self._native_masks.get(sample)
        if mask is None:
            mask = self.reader.read_mask(sample)
            if len(self._filled):
                self._native_masks[sample] = mask
        return mask

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _decode(self, ids: Ids) -> Iterator[tuple[Pixels, Pixels]]:
        return self._pool.map(lambda i: self.reader.read_resized(int(i), self.size), ids)


def prefetch(source: SampleSource, wanted: Iterable[Ids], depth: int = 2) -> Generator[Batch, None, None]:
    """Batches of the wanted ids, up to ``depth`` of them decoded ahead by a thread.

    An error of the thread is raised at the batch where it happened; leaving the iterator early ends the thread.
    """
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
            for ids in wanted:
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


def _to_tensor(array: NDArray[np.generic]) -> Tensor:
    """The array as a tensor that a GPU, where there is one, can fetch while it computes."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if torch.cuda.is_available() else tensor
