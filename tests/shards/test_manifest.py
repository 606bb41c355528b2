import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.errors import InputError
from shards.manifest import (
    INDEX_SCHEMA,
    Manifest,
    dump_index,
    dump_manifest,
    find_manifest,
    load_index,
    load_manifest,
)
from shards.store import open_store


def test_a_manifest_comes_back(packed: Path, tmp_path: Path) -> None:
    manifest = load_manifest(open_store(str(packed)))
    store = open_store(str(tmp_path))
    store.put("manifest.json", dump_manifest(manifest))
    assert find_manifest(store) == manifest


def test_a_manifest_counts_samples_by_split(packed: Path) -> None:
    manifest = load_manifest(open_store(str(packed)))
    counts = [manifest.num_samples(split) for split in ("train", "val", "test")]
    assert manifest.num_samples() == sum(counts)
    assert [len(manifest.patients[split]) for split in ("train", "val", "test")] == [4, 1, 1]
    assert all(3 <= count <= 5 for count in counts[1:])
    assert 12 <= counts[0] <= 20


def test_without_a_manifest_there_is_no_data_set(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert find_manifest(store) is None
    with pytest.raises(InputError, match=rf"{tmp_path} holds no packed data set .*run `bts pack` first"):
        load_manifest(store)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda m: m | {"format": "bts-shards/2"}, r"format: .*'bts-shards/1'"),
        (lambda m: m | {"surprise": 1}, "surprise: Extra inputs"),
        (lambda m: {k: v for k, v in m.items() if k != "shards"}, "shards: Field required"),
        (lambda m: [], "whole file: "),
    ],
)
def test_a_manifest_of_another_format_is_refused_with_the_field(
    packed: Path, tmp_path: Path, spoil: Callable[[dict[str, Any]], object], said: str
) -> None:
    manifest = json.loads((packed / "manifest.json").read_bytes())
    (tmp_path / "manifest.json").write_text(json.dumps(spoil(manifest)))
    with pytest.raises(InputError, match=rf"manifest\.json is not a bts-shards/1 manifest \({said}"):
        find_manifest(open_store(str(tmp_path)))


def test_half_a_manifest_is_refused(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes((packed / "manifest.json").read_bytes()[:99])
    with pytest.raises(InputError, match="whole file: Invalid JSON"):
        find_manifest(open_store(str(tmp_path)))


Rows = list[dict[str, Any]]


def with_index(packed: Path, folder: Path, change: Callable[[Rows], Rows]) -> tuple[Path, Manifest]:
    """A copy of manifest and index, with other rows; the manifest says that they are right."""
    rows = change(pq.read_table(packed / "index.parquet").to_pylist())
    data = dump_index(rows)
    (folder / "index.parquet").write_bytes(data)
    manifest = load_manifest(open_store(str(packed)))
    return folder, manifest.model_copy(update={"index_sha256": hashlib.sha256(data).hexdigest()})


def test_an_index_comes_back_with_the_documented_columns(packed: Path) -> None:
    store = open_store(str(packed))
    table = load_index(store, load_manifest(store))
    assert table.schema == INDEX_SCHEMA
    assert table.column("key")[0].as_py().startswith("PHANTOM_")
    assert dump_index(table.to_pylist()) == (packed / "index.parquet").read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[1:], r"train-000000\.tar 5 train samples, the index 4"),
        (lambda rows: rows[1:5] + rows[:1] + rows[5:], None),
        (lambda rows: rows[5:10] + rows[:5] + rows[10:], r"train-000000\.tar 5 train samples, the index 0"),
        (
            lambda rows: [rows[0] | {"split": "test"}, *rows[1:]],
            r"train-000000\.tar 5 train samples, the index 4",
        ),
        (lambda rows: [*rows, rows[-1]], r"goes on with 1 samples of shards/test-"),
        (
            lambda rows: [*rows, rows[0] | {"shard": "shards/train-9.tar"}],
            r"1 samples of shards/train-9\.tar",
        ),
    ],
    ids=[
        "a row less",
        "order within a shard",
        "shards swapped",
        "other split",
        "a row more",
        "unknown shard",
    ],
)
def test_an_index_that_disagrees_with_the_manifest_names_the_shard(
    packed: Path, tmp_path: Path, change: Callable[[Rows], Rows], said: str | None
) -> None:
    folder, manifest = with_index(packed, tmp_path, change)
    store = open_store(str(folder))
    if said is None:
        assert load_index(store, manifest).num_rows == manifest.num_samples()
    else:
        with pytest.raises(InputError, match=said):
            load_index(store, manifest)


def test_a_changed_index_is_refused(packed: Path, tmp_path: Path) -> None:
    manifest = load_manifest(open_store(str(packed)))
    data = bytearray((packed / "index.parquet").read_bytes())
    data[100] ^= 1
    (tmp_path / "index.parquet").write_bytes(data)
    with pytest.raises(InputError, match=r"index\.parquet has sha256 .*changed or damaged"):
        load_index(open_store(str(tmp_path)), manifest)


def test_a_missing_index_is_named(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"index\.parquet is missing; pack the data again"):
        load_index(open_store(str(tmp_path)), load_manifest(open_store(str(packed))))


def test_an_index_with_other_columns_is_refused(packed: Path, tmp_path: Path) -> None:
    out = io.BytesIO()
    pq.write_table(pa.table({"key": ["a"]}), out)
    (tmp_path / "index.parquet").write_bytes(out.getvalue())
    manifest = load_manifest(open_store(str(packed)))
    manifest = manifest.model_copy(update={"index_sha256": hashlib.sha256(out.getvalue()).hexdigest()})
    with pytest.raises(InputError, match="has other columns than bts-shards/1 has"):
        load_index(open_store(str(tmp_path)), manifest)
