"""Samples of a packed data set by number, from bytes whose sha256 has been checked.

A shard is read through a local file: the store's own, or a copy in the node's cache folder.  Its whole content
is hashed once a process before the first sample is decoded from it.
"""

import hashlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from shards.config import StoreConfig
from shards.encode import MASK_SUFFIX, Pixels, decode_image, decode_mask
from shards.errors import InputError
from shards.manifest import Manifest, load_index, load_manifest
from shards.plan import Split
from shards.store import LocalStore, MissingObject, ObjectStore, open_store

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
    """Offset and size of the image in its shard, bytes; (N, 2).  ``mask_span`` likewise."""
    mask_span: NDArray[np.int64]
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

    def __init__(self, uri: str, store: StoreConfig | None = None) -> None:
        """Open the data set at ``uri``.

        Raises:
            InputError: there is none, or manifest and index disagree.
        """
        config = store or StoreConfig()
        self.store = open_store(uri, config)
        self.manifest: Manifest = load_manifest(self.store)
        self._table = load_index(self.store, self.manifest)
        self._files = ShardFiles(self.store, self.manifest, config)

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
        rows = self._table.filter(np.asarray(self._table["split"].to_numpy(zero_copy_only=False) == split))
        shards = [s for s in self.manifest.shards if s.split == split]
        number = {s.name: i for i, s in enumerate(shards)}
        index = SplitIndex(
            shard_names=tuple(s.name for s in shards),
            shard_sizes=tuple(s.samples for s in shards),
            shard=np.asarray([number[name] for name in rows["shard"].to_pylist()], np.int64),
            key=tuple(rows["key"].to_pylist()),
            patient=tuple(rows["patient"].to_pylist()),
            institution=tuple(rows["institution"].to_pylist()),
            slice_number=rows["slice"].to_numpy().astype(np.int64),
            tumour_pixels=rows["tumour_pixels"].to_numpy().astype(np.int64),
            image_span=_columns(rows, "image_offset", "image_size").astype(np.int64),
            mask_span=_columns(rows, "mask_offset", "mask_size").astype(np.int64),
            mean=_columns(rows, "mean_0", "mean_1", "mean_2").astype(np.float32),
            std=_columns(rows, "std_0", "std_1", "std_2").astype(np.float32),
        )
        return SplitReader(index, self._files, self.manifest)


class SplitReader:
    """Decodes samples of one split by id."""

    def __init__(self, index: SplitIndex, files: "ShardFiles", manifest: Manifest) -> None:
        self.index = index
        self._files = files
        self._manifest = manifest

    @property
    def native_size(self) -> tuple[int, int]:
        return self._manifest.height, self._manifest.width

    def read(self, sample: int) -> tuple[Pixels, Pixels]:
        """Image (H, W, 3) and mask (H, W) of {0, 1}, uint8, at native size.

        Raises:
            InputError: the shard is missing or its bytes are not the packed ones; it names shard and key.
        """
        data, name = self._member(sample, self.index.image_span[sample], self._manifest.image_suffix)
        image = decode_image(data, name)
        if image.shape[:2] != self.native_size:
            raise InputError(f"{name}: {image.shape[:2]} pixels, the manifest says {self.native_size}")
        return image, self.read_mask(sample)

    def read_mask(self, sample: int) -> Pixels:
        """The mask alone; as ``read``."""
        data, name = self._member(sample, self.index.mask_span[sample], MASK_SUFFIX)
        mask = decode_mask(data, name)
        if mask.shape != self.native_size:
            raise InputError(f"{name}: {mask.shape} pixels, the manifest says {self.native_size}")
        return mask

    def _member(self, sample: int, span: NDArray[np.int64], suffix: str) -> tuple[bytes, str]:
        """A member's bytes, and its name for messages: the shard's, then its own."""
        shard = self.index.shard_names[self.index.shard[sample]]
        name = f"{shard}: {self.index.key[sample]}.{suffix}"
        try:
            path = self._files.path(shard)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        try:
            return _read_span(path, span), name
        except OSError as error:
            raise InputError(
                f"{name}: cannot be read from {path} ({error}); copy or pack it again"
            ) from error

    def read_resized(self, sample: int, size: int | None) -> tuple[Pixels, Pixels]:
        """As ``read``, scaled to ``size`` pixels a side: averaging for the image, majority for the mask."""
        image, mask = self.read(sample)
        if size is None or (size, size) == self.native_size:
            return image, mask
        small = Image.fromarray(image).resize((size, size), Image.Resampling.BOX)
        share = Image.fromarray(mask * np.uint8(255)).resize((size, size), Image.Resampling.BOX)
        return np.asarray(small), (np.asarray(share) >= 128).astype(np.uint8)


class ShardFiles:
    """Verified local files of a data set's shards, fetched on first use; safe for threads and processes."""

    def __init__(self, store: ObjectStore, manifest: Manifest, config: StoreConfig) -> None:
        self._store = store
        self._shards = {s.name: s for s in manifest.shards}
        self._cache = LocalStore(str(cache_folder(config)), cache_folder(config).absolute())
        self._verified: dict[str, Path] = {}
        self._lock = threading.Lock()

    def path(self, name: str) -> Path:
        """A local file with the shard's bytes, checked by sha256 once a process."""
        with self._lock:
            if name not in self._verified:
                self._verified[name] = self._fetch(name)
            return self._verified[name]

    def _fetch(self, name: str) -> Path:
        sha256 = self._shards[name].sha256
        if isinstance(self._store, LocalStore):
            _checked(self._store, name, sha256)
            return self._store.root / name
        copy = f"{sha256}.tar"
        if not _holds(self._cache, copy, sha256):
            self._cache.put(copy, _checked(self._store, name, sha256))
        return self._cache.root / copy


def cache_folder(config: StoreConfig) -> Path:
    """Where this node keeps shards fetched from object storage."""
    if config.cache_dir is not None:
        return Path(config.cache_dir).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bts-dist"


def _holds(cache: LocalStore, key: str, sha256: str) -> bool:
    try:
        return hashlib.sha256(cache.get(key)).hexdigest() == sha256
    except MissingObject:
        return False


def _checked(store: ObjectStore, name: str, sha256: str) -> bytes:
    """A shard's bytes, if they are the packed ones."""
    try:
        data = store.get(name)
    except MissingObject as error:
        raise InputError(f"{store.uri}/{name} is missing; copy or pack it again") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise InputError(
            f"{store.uri}/{name}: sha256 is {found[:12]}…, the manifest says {sha256[:12]}… "
            f"({len(data)} bytes found); the shard was changed or damaged: copy or pack it again"
        )
    return data


def _read_span(path: Path, span: NDArray[np.int64]) -> bytes:
    with path.open("rb") as file:
        return os.pread(file.fileno(), int(span[1]), int(span[0]))


def _columns(table: pa.Table, *names: str) -> NDArray[np.generic]:
    return np.stack([table[name].to_numpy() for name in names], axis=1)
