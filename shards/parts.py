"""What packing leaves with each finished shard until the data set is whole: its rows of the index.

A part is a small Parquet file that names the sha256 of its shard.  Workers write parts, and the driver joins them
into the index one by one, so that nobody holds the rows of more than one row group.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import InputError
from shards.parallel import ahead
from shards.rows import INDEX_SCHEMA
from shards.store import MissingObject, ObjectStore

PARTS = "parts/"
ROW_GROUP = 1 << 14
"""Rows of the index that are written, and held in memory, at a time."""

_SHARD_SHA256 = b"shard_sha256"
_REQUESTS = 8  # At a time; they hide an object store's latency.


def put_part(store: ObjectStore, shard: str, sha256: str, rows: Sequence[dict[str, Any]]) -> None:
    """Record that a shard is finished, with its rows of ``INDEX_SCHEMA``."""
    schema = INDEX_SCHEMA.with_metadata({_SHARD_SHA256: sha256})
    out = io.BytesIO()
    pq.write_table(
        pa.Table.from_pylist(list(rows), schema=schema), out, compression="zstd", write_page_checksum=True
    )
    store.put(_key(shard), out.getvalue())


def finished_sha256(store: ObjectStore, shard: str, num_samples: int) -> str | None:
    """The sha256 of the shard that a part was written for; None when there is none, or none that can be used."""
    try:
        table = _part(store, shard)
    except (MissingObject, InputError):
        return None
    if table.column("shard").to_pylist() != [shard] * num_samples:
        return None
    return str((table.schema.metadata or {}).get(_SHARD_SHA256, b"").decode("ascii", "replace"))


def write_index(store: ObjectStore, shards: Iterable[str], path: Path) -> str:
    """Join the parts of the shards, in their order, to a Parquet file; returns its sha256.

    The bytes depend on the rows alone.  Memory: one row group.

    Raises:
        MissingObject: a part is not there.
        InputError: a part is damaged.
    """
    with pq.ParquetWriter(path, INDEX_SCHEMA, compression="zstd") as writer:
        for table in _regrouped(ahead(partial(_part, store), shards, _REQUESTS), ROW_GROUP):
            writer.write_table(table, row_group_size=ROW_GROUP)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def drop_parts(store: ObjectStore) -> None:
    for _ in ahead(store.delete, [entry.key for entry in store.list(PARTS)], _REQUESTS):
        pass


def _key(shard: str) -> str:
    return PARTS + shard.rsplit("/", 1)[-1].removesuffix(".tar") + ".parquet"


def _part(store: ObjectStore, shard: str) -> pa.Table:
    data = store.get(_key(shard))
    try:
        table = pq.read_table(io.BytesIO(data), use_threads=False, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{store.uri}/{_key(shard)} is damaged ({error}); run `bts pack` again") from error
    if not table.schema.equals(INDEX_SCHEMA):
        raise InputError(
            f"{store.uri}/{_key(shard)} has other columns than the index; delete it and pack again"
        )
    return table


def _regrouped(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """The same rows in tables of ``size`` rows, the last with what is left."""
    held, num_rows = list[pa.Table](), 0
    for table in tables:
        held.append(table)
        num_rows += table.num_rows
        while num_rows >= size:
            whole = pa.concat_tables(held)
            yield whole.slice(0, size)
            held, num_rows = [whole.slice(size)], num_rows - size
    if num_rows:
        yield pa.concat_tables(held)
