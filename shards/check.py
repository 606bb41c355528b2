"""A packed data set, byte by byte: every shard re-hashed, every member where the index says and what it says."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from shards.config import StoreConfig
from shards.encode import MASK_SUFFIX, META_SUFFIX, decode_image, decode_mask
from shards.errors import InputError
from shards.manifest import MANIFEST, SHARDS, Manifest, ShardRecord, load_index, load_manifest
from shards.meta import SAID_TWICE, decode_meta
from shards.pack import data_id
from shards.store import MissingObject, ObjectStore, open_store
from shards.tar import check_contents

Progress = Callable[[int, int], None]
Row = dict[str, Any]


def check_packed(uri: str, store: StoreConfig, progress: Progress | None = None) -> Manifest:
    """Verify the data set at ``uri`` completely; ``progress`` gets the shards done and all.

    Raises:
        InputError: manifest or index cannot be true; or it lists every shard that is missing, damaged, unknown,
            or not what they say, with the first member that is wrong.
    """
    source = open_store(uri, store)
    manifest = load_manifest(source)
    index = load_index(source, manifest)
    _check_identity(manifest, uri)
    faults: list[str] = []
    start = 0
    for number, shard in enumerate(manifest.shards, start=1):
        try:
            _check_shard(source, manifest, shard, index.slice(start, shard.samples).to_pylist())
        except InputError as fault:
            faults.append(str(fault))
        start += shard.samples
        if progress is not None:
            progress(number, len(manifest.shards))
    known = {shard.name for shard in manifest.shards}
    faults += [f"{e.key}: is not in the manifest" for e in source.list(SHARDS) if e.key not in known]
    if faults:
        raise InputError(
            f"{uri}: {len(faults)} of its shards are not as packed:\n  "
            + "\n  ".join(faults)
            + "\nCopy them again, or pack the data set anew to another prefix"
        )
    return manifest


def _check_identity(manifest: Manifest, uri: str) -> None:
    """Runs and scores know a data set by ``data_id``, so it must be that of its provenance."""
    recorded = manifest.provenance
    right = data_id(recorded.source_fingerprint, recorded.split, recorded.pack)
    if manifest.data_id != right:
        raise InputError(
            f"{uri}/{MANIFEST}: data_id is {manifest.data_id}, its provenance gives {right}; "
            "copy it again, or pack the data again"
        )


def _check_shard(source: ObjectStore, manifest: Manifest, shard: ShardRecord, rows: list[Row]) -> None:
    """Raise ``InputError`` for the first fault of a shard."""
    try:
        data = source.get(shard.name)
    except MissingObject as error:
        raise InputError(f"{shard.name}: is missing") from error
    found = hashlib.sha256(data).hexdigest()
    if found != shard.sha256:
        raise InputError(
            f"{shard.name}: sha256 is {found[:12]}…, the manifest says {shard.sha256[:12]}… "
            f"({len(data)} bytes, packed were {shard.bytes})"
        )
    parts = (("image", manifest.image_suffix), ("mask", MASK_SUFFIX), ("meta", META_SUFFIX))
    spans = [
        (f"{row['key']}.{suffix}", row[f"{part}_offset"], row[f"{part}_size"])
        for row in rows
        for part, suffix in parts
    ]
    check_contents(data, shard.name, spans)
    payloads = ((f"{shard.name}: {name}", data[start : start + size]) for name, start, size in spans)
    for row in rows:
        image, mask, meta = next(payloads), next(payloads), next(payloads)
        _check_pixels(image, mask, row, (manifest.height, manifest.width))
        _check_meta(*meta, row)


def _check_pixels(image: tuple[str, bytes], mask: tuple[str, bytes], row: Row, size: tuple[int, int]) -> None:
    """Check two members, each a name and its bytes, against index and manifest."""
    (image_name, image_data), (mask_name, mask_data) = image, mask
    shape = decode_image(image_data, image_name).shape[:2]
    if shape != size:
        raise InputError(f"{image_name}: {shape} pixels, the manifest says {size}")
    mask_HW = decode_mask(mask_data, mask_name)
    if mask_HW.shape != size:
        raise InputError(f"{mask_name}: {mask_HW.shape} pixels, the manifest says {size}")
    if int(mask_HW.sum()) != row["tumour_pixels"]:
        raise InputError(
            f"{mask_name}: {int(mask_HW.sum())} tumour pixels, the index says {row['tumour_pixels']}"
        )


def _check_meta(name: str, data: bytes, row: Row) -> None:
    """Check a sample's JSON against its row: all that both say, and nothing unknown."""
    meta = decode_meta(data, name)
    said = {field: meta[field] for field in SAID_TWICE} | _figures(meta, name)
    for field, value in said.items():
        if type(value) is not type(row[field]) or value != row[field]:
            raise InputError(f"{name}: says {field} {str(value)[:80]!r}, the index {row[field]!r}")


def _figures(meta: dict[str, Any], name: str) -> dict[str, float]:
    """Mean and standard deviation of each channel, under the names and with the precision of the index."""
    figures: dict[str, float] = {}
    for field in ("mean", "std"):
        values = meta[field]
        if not (isinstance(values, list) and len(values) == 3 and all(isinstance(v, float) for v in values)):
            raise InputError(f"{name}: says {field} {str(values)[:80]!r}, not three numbers")
        figures |= {f"{field}_{c}": float(np.float32(value)) for c, value in enumerate(values)}
    return figures
