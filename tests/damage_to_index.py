"""Damage to the index, and to samples in index, shard and manifest at once; the manifest vouches for it."""

import io
from collections.abc import Callable
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
from damage_to_bytes import BYTES, Spoil, spoilt
from packed_set import Damage, PackedSet, tar_of

from shards.manifest import INDEX


def row_edited(column: str, *values: object) -> Damage:
    def damage(random: Random, data: PackedSet) -> tuple[str, ...]:
        row = random.choice(data.rows())
        data.change_row(row["key"], **{column: random.choice([v for v in values if v != row[column]])})
        return (INDEX,) if column in ("key", "shard", "split") else (row["patient"],)

    return damage


def span_edited(random: Random, data: PackedSet) -> tuple[str, ...]:
    row = random.choice(data.rows())
    column = random.choice(
        [f"{part}_{what}" for part in ("image", "mask", "meta") for what in ("offset", "size")]
    )
    by = random.choice([-512, -1, 1, 512, 1024, -row[column]])
    data.change_row(row["key"], **{column: row[column] + by})
    return (row["shard"],)


def spans_exchanged(random: Random, data: PackedSet) -> tuple[str, ...]:
    """Two samples of a shard that point at each other's members."""
    shard = random.choice([s for s in data.shards if len(data.rows(s)) > 1])
    one, other = random.sample(data.rows(shard), 2)
    columns = [f"{part}_{what}" for part in ("image", "mask", "meta") for what in ("offset", "size")]
    data.change_row(one["key"], **{c: other[c] for c in columns})
    data.change_row(other["key"], **{c: one[c] for c in columns})
    return (shard,)


def rows_swapped(random: Random, data: PackedSet) -> tuple[str, ...]:
    rows = data.rows()
    one, other = random.sample(range(len(rows)), 2)
    rows[one], rows[other] = rows[other], rows[one]
    data.put_rows(rows)
    return ("shards/",)


def row_dropped(random: Random, data: PackedSet) -> tuple[str, ...]:
    rows = data.rows()
    del rows[random.randrange(len(rows))]
    data.put_rows(rows)
    return ("shards/",)


def row_repeated(random: Random, data: PackedSet) -> tuple[str, ...]:
    rows = data.rows()
    one, other = random.sample(range(len(rows)), 2)
    if random.random() < 0.5:
        rows[one] = rows[other]
    else:
        rows.insert(one, rows[other])
    data.put_rows(rows)
    return (INDEX,)


def sample_repeated(random: Random, data: PackedSet) -> tuple[str, ...]:
    """One key twice, in shard, index and manifest."""
    shard = random.choice(data.shards)
    (*_, last) = data.rows(shard)
    members = data.members(shard)
    whole = tar_of([*members, *((f"x_{name}", payload) for name, payload in members[-3:])]).replace(
        b"x_", b"", 3
    )
    rows = data.rows()
    rows.insert(rows.index(last) + 1, dict(last))
    data.put_rows(rows)
    data.put_shard(shard, whole)
    manifest = data.manifest()
    for record in manifest["shards"]:
        record["samples"] += record["name"] == shard
    data.put_manifest(manifest)
    return shard, last["key"]


def sample_left_out(random: Random, data: PackedSet) -> tuple[str, ...]:
    """A slice less, in shard, index and manifest."""
    shard = random.choice([s for s in data.shards if len(data.rows(s)) > 1])
    left_out = random.choice(data.rows(shard))
    data.put_rows([row for row in data.rows() if row["key"] != left_out["key"]])
    data.put_members(shard, [m for m in data.members(shard) if m[0].partition(".")[0] != left_out["key"]])
    manifest = data.manifest()
    for record in manifest["shards"]:
        record["samples"] -= record["name"] == shard
    data.put_manifest(manifest)
    return (left_out["patient"],)


def columns_changed(random: Random, data: PackedSet) -> tuple[str, ...]:
    table = pq.read_table(io.BytesIO(data.files[INDEX]))
    name = random.choice(table.column_names)
    at = table.column_names.index(name)
    changes: list[Callable[[], pa.Table]] = [
        lambda: table.remove_column(at),
        lambda: table.append_column("surprise", table[name]),
        lambda: table.append_column(name, table[name]),
        lambda: table.rename_columns([f"{c}x" if c == name else c for c in table.column_names]),
        lambda: table.set_column(at, name, table[name].cast(pa.string() if at > 4 else pa.binary())),
        lambda: table.select(table.column_names[::-1]),
    ]
    out = io.BytesIO()
    pq.write_table(random.choice(changes)(), out)
    data.put_index(out.getvalue())
    return (INDEX,)


def vouched_index(how: Spoil) -> Damage:
    """An index of harmed bytes, all the same vouched for, that no longer says what it said."""

    def damage(random: Random, data: PackedSet) -> tuple[str, ...]:
        whole = data.files[INDEX]
        rows = pq.read_table(io.BytesIO(whole))
        while says_the_same(harmed := spoilt(how, random, whole), rows):
            pass
        data.put_index(harmed)
        return ()

    return damage


def says_the_same(harmed: bytes, rows: pa.Table) -> bool:
    try:
        return pq.ParquetFile(io.BytesIO(harmed)).read(use_threads=False).equals(rows)
    except (pa.ArrowException, OSError, UnicodeError):
        return False


def tumour_pixels_of_another_mask(random: Random, data: PackedSet) -> tuple[str, ...]:
    row = random.choice(data.rows())
    data.change_row(row["key"], tumour_pixels=(row["tumour_pixels"] + random.randrange(1, 1025)) % 1025)
    return row["shard"], row["key"]


def figures_of_another_patient(random: Random, data: PackedSet) -> tuple[str, ...]:
    row = random.choice(data.rows())
    column, value = random.choice([("mean_1", 77.0), ("std_2", 7.0), ("institution", "ZZ")])
    data.put_rows([r | {column: value} if r["patient"] == row["patient"] else r for r in data.rows()])
    return row["shard"], row["patient"]


LIES: dict[str, Damage] = {
    "sample twice": sample_repeated,
    "sample left out": sample_left_out,
    "row's key": row_edited(
        "key", "../x_0001", "/x_0001", "pipe:x", "PHANTOM_AX_0001_0099", "", "a.b", "x" * 999
    ),
    "row's shard": row_edited("shard", "pipe:x", "../x.tar", "s3://b/x.tar", "shards/train-000000.tar", ""),
    "row's split": row_edited("split", "train", "val", "test", "all", ""),
    "row's patient": row_edited("patient", "PHANTOM_AX_0099", "../x", ""),
    "row's institution": row_edited("institution", "ZZ", "../x", "", "\x1b[2J"),
    "row's slice": row_edited("slice", 0, -1, 99, 10**6, 2**31 - 1),
    "row's num_slices": row_edited("num_slices", 0, -1, 99, 2**31 - 1),
    "row's tumour_pixels": row_edited("tumour_pixels", -1, 1025, 2**31 - 1),
    "row's figures": row_edited("std_0", 0.0, -1.0, float("nan"), float("inf"), 1e30),
    "row's null": row_edited("mean_1", None),
    "row's span": span_edited,
    "spans exchanged": spans_exchanged,
    "rows swapped": rows_swapped,
    "row dropped": row_dropped,
    "row repeated": row_repeated,
    "columns": columns_changed,
}
HIDDEN: dict[str, Damage] = {
    **{f"{how.__name__} index": vouched_index(how) for how in BYTES},
    "tumour pixels": tumour_pixels_of_another_mask,
    "figures": figures_of_another_patient,
}
