"""Samples of a packed data set by number, from bytes whose sha256 has been checked."""

import hashlib
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass
from itertools import compress
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.cache import NodeCache
from shards.config import DataConfig, StoreConfig
from shards.encode import MASK_SUFFIX, META_SUFFIX, Pixels, decode_image, decode_mask
from shards.errors import InputError
from shards.files import ShardFiles, Span
from shards.manifest import Manifest, load_index, load_manifest
from shards.meta import Facts, decode_meta, facts
from shards.plan import Split
from shards.rows import numbers
from shards.store import LocalStore, StoreError, open_store

TrainingSplit = Literal["train", "val"]


@dataclass(frozen=True)
class SplitIndex:
    """The index rows of one split, as columns; row *i* is sample id *i*."""

    shard_names: tuple[str, ...]
    shard_sizes: tuple[int, ...]
    shard: NDArray[np.int64]
    key: tuple[str, ...]
    patient: tuple[str, ...]
    institution: tuple[str, ...]
    slice_number: NDArray[np.int64]
    tumour_pixels: NDArray[np.int64]
    image_span: NDArray[np.int64]
    """Offset and size of the image in its shard, bytes; (N, 2).  ``mask_span`` and ``meta_span`` likewise."""
    mask_span: NDArray[np.int64]
    meta_span: NDArray[np.int64]
    mean: NDArray[np.float32]
    """Normalisation figures of each sample's volume; (N, 3).  ``std`` likewise."""
    std: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.key)

    def patients(self) -> list[str]:
        return sorted(set(self.patient))

    def samples_of(self, patient: str) -> NDArray[np.int64]:
        """Sample ids of a patient's slices, in slice order."""
        ids = np.flatnonzero(np.asarray(self.patient) == patient)
        return ids[np.argsort(self.slice_number[ids], kind="stable")]


class PackedData:
    """A packed data set, opened: its manifest is read, its index checked."""

    def __init__(self, uri: str, store: StoreConfig | None = None, data: DataConfig | None = None) -> None:
        """Open the data set at ``uri``; ``data`` says how samples are to be read.

        Raises:
            InputError: there is none, or manifest and index disagree.
        """
        self._config, self._reading = store or StoreConfig(), data or DataConfig()
        self.store = open_store(uri, self._config)
        self.manifest: Manifest = load_manifest(self.store)
        self._table = load_index(self.store, self.manifest)

    def reading(self, data: DataConfig) -> "PackedData":
        """The same data set, to be read another way."""
        other = copy(self)
        other._reading = data
        return other

    def training(self, split: TrainingSplit) -> "SplitReader":
        """Samples to train or choose on.  Test samples cannot be asked for here."""
        if split not in get_args(TrainingSplit):
            raise ValueError(
                f"training on the {split} split is not possible; only {get_args(TrainingSplit)} are"
            )
        return self._reader(split)

    def test(self) -> "SplitReader":
        """Held-out samples, for scoring alone."""
        return self._reader("test")

    def _reader(self, split: Split) -> "SplitReader":
        # Rows stand shard by shard in the manifest's order, as was checked.
        ours = np.repeat(
            [s.split == split for s in self.manifest.shards], [s.samples for s in self.manifest.shards]
        )
        shards = [s for s in self.manifest.shards if s.split == split]

        def texts(name: str) -> tuple[str, ...]:
            return tuple(compress(self._table[name].to_pylist(), ours))

        def columns(*names: str) -> NDArray[Any]:
            return np.stack([numbers(self._table[name])[ours] for name in names], axis=1)

        index = SplitIndex(
            shard_names=tuple(s.name for s in shards),
            shard_sizes=tuple(s.samples for s in shards),
            shard=np.repeat(np.arange(len(shards)), [s.samples for s in shards]),
            key=texts("key"),
            patient=texts("patient"),
            institution=texts("institution"),
            slice_number=columns("slice")[:, 0].astype(np.int64),
            tumour_pixels=columns("tumour_pixels")[:, 0].astype(np.int64),
            image_span=columns("image_offset", "image_size").astype(np.int64),
            mask_span=columns("mask_offset", "mask_size").astype(np.int64),
            meta_span=columns("meta_offset", "meta_size").astype(np.int64),
            mean=columns("mean_0", "mean_1", "mean_2").astype(np.float32),
            std=columns("std_0", "std_1", "std_2").astype(np.float32),
        )
        return SplitReader(index, self)


class SplitReader:
    """Decodes samples of one split by id."""

    def __init__(self, index: SplitIndex, data: PackedData) -> None:
        self.index = index
        self.remote = not isinstance(data.store, LocalStore)
        """Whether the shards have to be fetched."""
        self._manifest = manifest = data.manifest
        self._starts = np.cumsum([0, *index.shard_sizes])
        digests = {shard.name: shard.sha256 for shard in manifest.shards}
        self.content = hashlib.sha256("".join(digests[n] for n in index.shard_names).encode()).hexdigest()
        """Names the bytes of the split's shards."""
        reading = data._reading
        writes = reading.cache != "none" and (
            reading.cache != "auto" or NodeCache.of(data._config).has_room()
        )
        self.on_disk = self.remote and writes
        """Whether fetched shards stay on this node's disk."""
        self._files = ShardFiles(
            data.store,
            manifest,
            data._config,
            self._members_of,
            on_disk=writes,
            threads=reading.fetch_threads,
            # The shards of a window, those that follow it, and a few of another window's last batches.
            keep=3 * reading.window_shards,
        )

    @property
    def native_size(self) -> tuple[int, int]:
        return self._manifest.height, self._manifest.width

    def read(
        self, sample: int, image_out: Pixels | None = None, mask_out: Pixels | None = None
    ) -> tuple[Pixels, Pixels]:
        """Image (H, W, 3) and mask (H, W) of {0, 1}, uint8, at native size; into the given arrays if there are any.

        Raises:
            InputError: the shard is missing or its bytes are not the packed ones; it names shard and key.
        """
        data, name = self._member(sample, self.index.image_span[sample], self._manifest.image_suffix)
        image = decode_image(data, name, image_out)
        self._check_size(image, name)
        return image, self.read_mask(sample, mask_out)

    def read_mask(self, sample: int, out: Pixels | None = None) -> Pixels:
        """The mask alone; as ``read``."""
        data, name = self._member(sample, self.index.mask_span[sample], MASK_SUFFIX)
        mask = decode_mask(data, name, out)
        self._check_size(mask, name)
        return mask

    def read_facts(self, sample: int) -> Facts:
        """What only the sample's JSON says.  Raises ``InputError`` as ``read``, and where it cannot be true."""
        data, name = self._member(sample, self.index.meta_span[sample], META_SUFFIX)
        try:
            return facts(decode_meta(data, name))
        except InputError as error:
            raise InputError(f"{error}; pack the data again") from error

    def _check_size(self, pixels: Pixels, name: str) -> None:
        if pixels.shape[:2] != self.native_size:
            raise InputError(
                f"{name}: {pixels.shape[:2]} pixels, the manifest says {self.native_size}; pack the data again"
            )

    def _member(self, sample: int, span: NDArray[np.int64], suffix: str) -> tuple[bytes, str]:
        """A member's bytes, and its name for messages: the shard's, then its own."""
        shard = self.index.shard_names[self.index.shard[sample]]
        name = f"{shard}: {self.index.key[sample]}.{suffix}"
        try:
            return self._files.shard(shard).read(int(span[0]), int(span[1])), name
        except (InputError, StoreError) as error:
            raise type(error)(f"{name}: {error}") from error
        except OSError as error:
            raise InputError(f"{name}: cannot be read ({error}); copy or pack it again") from error

    def announce(self, shards: Iterable[int]) -> None:
        """Begin to fetch shards, by number in the index, whose samples will be read soon."""
        self._files.announce(self.index.shard_names[shard] for shard in shards)

    def close(self) -> None:
        """Close the shards' files; samples cannot be read afterwards."""
        self._files.close()

    def _members_of(self, shard_name: str) -> list[Span]:
        """What the index says that a shard holds, in the order of its bytes."""
        index, shard = self.index, self.index.shard_names.index(shard_name)
        suffixes = (self._manifest.image_suffix, MASK_SUFFIX, META_SUFFIX)
        spans = (index.image_span, index.mask_span, index.meta_span)
        return [
            (f"{index.key[sample]}.{suffix}", int(span[sample, 0]), int(span[sample, 1]))
            for sample in range(self._starts[shard], self._starts[shard + 1])
            for suffix, span in zip(suffixes, spans, strict=True)
        ]

    def read_resized(self, sample: int, image_out: Pixels, mask_out: Pixels) -> None:
        """Read into arrays (h, w, 3) and (h, w), scaled to them: averaging for the image, majority for the mask."""
        height, width = mask_out.shape
        if (height, width) == self.native_size:
            self.read(sample, image_out, mask_out)
            return
        image, mask = self.read(sample)
        image_out[...] = resized(image, (height, width))
        share = Image.fromarray(mask * np.uint8(255)).resize((width, height), Image.Resampling.BOX)
        mask_out[...] = np.asarray(share) >= 128


def resized(image_HWC: Pixels, size: tuple[int, int]) -> Pixels:
    """A uint8 image scaled to ``size`` by averaging, as the model sees it; itself where it has that size."""
    if image_HWC.shape[:2] == size:
        return image_HWC
    height, width = size
    return np.asarray(Image.fromarray(image_HWC).resize((width, height), Image.Resampling.BOX))
