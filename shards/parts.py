"""What packing leaves with each finished shard until the data set is whole: its rows of the index.

A part is a few lines of JSON: a sha256 of the rest, what shard it is of, and a line for each row.  Workers write
parts, and the driver joins them into the index, so that nobody holds the rows of more than one row group.  (Arrow reads
JSON into tables by itself; making them of Python's lists would have every worker import pandas.)
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json as pj
import pyarrow.parquet as pq

from shards.errors import InputError
from shards.parallel import ahead
from shards.rows import INDEX_SCHEMA
from shards.store import MissingObject, ObjectStore

PARTS = "parts/"
ROW_GROUP = 1 << 14
"""Rows of the index that are written, and held in memory, at a time."""

_REQUESTS = 8  # At a time; they hide an object store's latency.


def put_part(store: ObjectStore, shard: str, sha256: str, rows: Sequence[dict[str, Any]]) -> None:
    """Record that a shard of these bytes is finished, with its rows of ``INDEX_SCHEMA``."""
    lines = ({"shard": shard, "sha256": sha256}, *rows)
    body = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    store.put(_key(shard), f"{hashlib.sha256(body).hexdigest()}\n".encode() + body)


def finished_sha256(store: ObjectStore, shard: str) -> str | None:
    """The sha256 of the shard that a part was written for; None when there is none, or none that is whole."""
    try:
        head, _ = _part(store, shard)
    except (MissingObject, InputError):
        return None
    return str(head["sha256"])


def write_index(store: ObjectStore, shards: Iterable[str], path: Path) -> str:
    """Join the parts of the shards, in their order, to a Parquet file; returns its sha256.

    The bytes depend on the rows alone.  Memory: one row group.

    Raises:
        MissingObject: a part is not there.
        InputError: a part is damaged.
    """
    with pq.ParquetWriter(path, INDEX_SCHEMA, compression="zstd") as writer:
        for table in _regrouped(ahead(partial(_table, store), shards, _REQUESTS), ROW_GROUP):
            writer.write_table(table, row_group_size=ROW_GROUP)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def drop_parts(store: ObjectStore) -> None:
    for _ in ahead(store.delete, [entry.key for entry in store.list(PARTS)], _REQUESTS):
        pass


def _key(shard: str) -> str:
    return PARTS + shard.rsplit("/", 1)[-1].removesuffix(".tar") + ".jsonl"


def _part(store: ObjectStore, shard: str) -> tuple[dict[str, Any], bytes]:
    """A part's first line and its rows, if its own sha256 and its shard's name fit."""
    seal, _, body = store.get(_key(shard)).partition(b"\n")
    if seal.decode("ascii", "replace") == hashlib.sha256(body).hexdigest():
        line, _, rows = body.partition(b"\n")
        head = json.loads(line)
        if head["shard"] == shard:
            return head, rows
    raise InputError(f"{store.uri}/{_key(shard)} is damaged; run `bts pack` again")


def _table(store: ObjectStore, shard: str) -> pa.Table:
    _, rows = _part(store, shard)
    options = pj.ParseOptions(explicit_schema=INDEX_SCHEMA, unexpected_field_behavior="error")
    return pj.read_json(io.BytesIO(rows), parse_options=options)


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
