"""What a packed data set says of itself: ``manifest.json`` and ``index.parquet``."""

import hashlib
import io
import json
from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from shards.config import PackConfig, Section, SplitConfig
from shards.errors import InputError
from shards.plan import Split
from shards.store import MissingObject, ObjectStore

FORMAT: Literal["bts-shards/1"] = "bts-shards/1"
MANIFEST = "manifest.json"
INDEX = "index.parquet"
SHARDS = "shards/"

INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("split", pa.string()),
        ("shard", pa.string()),
        ("patient", pa.string()),
        ("institution", pa.string()),
        ("slice", pa.int32()),
        ("num_slices", pa.int32()),
        ("tumour_pixels", pa.int32()),
        ("image_offset", pa.int64()),
        ("image_size", pa.int32()),
        ("mask_offset", pa.int64()),
        ("mask_size", pa.int32()),
        ("meta_offset", pa.int64()),
        ("meta_size", pa.int32()),
        *((f"{figure}_{c}", pa.float32()) for figure in ("mean", "std") for c in range(3)),
    ]
)


class ShardRecord(Section):
    name: str
    split: Split
    samples: int
    bytes: int
    sha256: str


class Provenance(Section):
    """Where the data set came from: enough to make it again and to tell it from another."""

    source: str
    source_fingerprint: str
    """sha256 over every source file's name and bytes."""
    pack: PackConfig
    split: SplitConfig


class Manifest(Section):
    """The root of a packed data set.  Without it there is no data set."""

    format: Literal["bts-shards/1"] = FORMAT
    data_id: str
    """Names the content: equal for equal source, split and packing."""
    height: int
    width: int
    image_suffix: str
    patients: dict[Split, list[str]]
    shards: list[ShardRecord]
    index_sha256: str
    provenance: Provenance

    def num_samples(self, split: Split | None = None) -> int:
        return sum(s.samples for s in self.shards if split in (None, s.split))


def find_manifest(store: ObjectStore) -> Manifest | None:
    """The manifest of the data set at ``store``, or None when there is none.

    Raises:
        InputError: there is one that this version cannot read.
    """
    try:
        data = store.get(MANIFEST)
    except MissingObject:
        return None
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "whole file"
        raise InputError(
            f"{store.uri}/{MANIFEST} is not a {FORMAT} manifest ({where}: {first['msg']}); pack the data again"
        ) from error


def load_manifest(store: ObjectStore) -> Manifest:
    """As ``find_manifest``, but absence is an ``InputError`` too."""
    manifest = find_manifest(store)
    if manifest is None:
        raise InputError(f"{store.uri} holds no packed data set (no {MANIFEST}); run `bts pack` first")
    return manifest


def dump_manifest(manifest: Manifest) -> bytes:
    return (json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode()


def dump_index(rows: Sequence[dict[str, Any]]) -> bytes:
    """Rows of ``INDEX_SCHEMA`` as a Parquet file."""
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=INDEX_SCHEMA), out, compression="zstd")
    return out.getvalue()


def load_index(store: ObjectStore, manifest: Manifest) -> pa.Table:
    """The index, checked against the manifest.

    Raises:
        InputError: it is missing, is not the one the manifest names, or lists samples of other shards.
    """
    try:
        data = store.get(INDEX)
    except MissingObject as error:
        raise InputError(f"{store.uri}/{INDEX} is missing; pack the data again") from error
    found = hashlib.sha256(data).hexdigest()
    if found != manifest.index_sha256:
        raise InputError(
            f"{store.uri}/{INDEX} has sha256 {found[:12]}…, the manifest says {manifest.index_sha256[:12]}…; "
            "it was changed or damaged: pack the data again"
        )
    table = pq.read_table(io.BytesIO(data))
    if table.schema != INDEX_SCHEMA:
        raise InputError(f"{store.uri}/{INDEX} has other columns than {FORMAT} has; pack the data again")
    _check_rows(table, manifest, store.uri)
    return table


def _check_rows(table: pa.Table, manifest: Manifest, uri: str) -> None:
    """Rows must stand shard by shard in the manifest's order, for a sample's number says where it lies."""
    place = table.select(["shard", "split"]).to_pylist()
    start = 0
    for shard in manifest.shards:
        rows = place[start : start + shard.samples]
        right = rows.count({"shard": shard.name, "split": shard.split})
        if right != shard.samples:
            raise InputError(
                f"{uri}: the manifest gives {shard.name} {shard.samples} {shard.split} samples, the index "
                f"{right} of them in its place; pack the data again"
            )
        start += shard.samples
    if start != len(place):
        raise InputError(
            f"{uri}: the index goes on with {len(place) - start} samples of {place[start]['shard']}, "
            "which the manifest does not count; pack the data again"
        )
