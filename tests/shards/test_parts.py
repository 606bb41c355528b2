import hashlib
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards import parts
from shards.errors import InputError
from shards.manifest import dump_index
from shards.parts import drop_parts, finished_sha256, put_part, write_index
from shards.rows import INDEX_SCHEMA
from shards.store import MissingObject, ObjectStore, open_store

SHARD = "shards/train-000000.tar"
SHA256 = "ab" * 32


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(str(tmp_path / "data"))


def name(number: int) -> str:
    return f"shards/train-{number:06d}.tar"


def rows(num: int, shard: str = SHARD, first: int = 0) -> list[dict[str, Any]]:
    blank: dict[str, Any] = dict.fromkeys(INDEX_SCHEMA.names)
    return [blank | {"shard": shard, "key": str(n), "slice": n} for n in range(first, first + num)]


def put_parts(store: ObjectStore, sizes: list[int]) -> list[str]:
    """Parts of these sizes, put in any order; the shards in theirs."""
    shards = [name(n) for n in range(len(sizes))]
    places = [
        (shard, size, sum(sizes[:n])) for n, (shard, size) in enumerate(zip(shards, sizes, strict=True))
    ]
    for shard, size, first in random.Random(0).sample(places, len(places)):
        put_part(store, shard, SHA256, rows(size, shard, first))
    return shards


def test_a_part_names_its_shard_s_sha256(store: ObjectStore) -> None:
    assert finished_sha256(store, SHARD) is None
    put_part(store, SHARD, SHA256, rows(3))
    assert finished_sha256(store, SHARD) == SHA256
    assert [entry.key for entry in store.list()] == ["parts/train-000000.jsonl"]


def test_a_part_of_another_shard_is_no_use(store: ObjectStore) -> None:
    put_part(store, SHARD, SHA256, rows(3))
    store.put("parts/train-000001.jsonl", store.get("parts/train-000000.jsonl"))
    assert finished_sha256(store, name(1)) is None


def test_any_change_of_a_part_is_noticed(store: ObjectStore, tmp_path: Path) -> None:
    put_part(store, SHARD, SHA256, rows(20))
    file = Path(store.uri, store.list()[0].key)
    whole = file.read_bytes()
    for at in random.Random(0).sample(range(len(whole)), 100):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        assert finished_sha256(store, SHARD) is None
        with pytest.raises(InputError, match=r"parts/train-000000\.jsonl is damaged"):
            write_index(store, [SHARD], tmp_path / "index.parquet")
    file.write_bytes(whole[: len(whole) // 2])
    assert finished_sha256(store, SHARD) is None


@pytest.mark.parametrize("data", [b"", b"\n", b"{}", hashlib.sha256(b"").hexdigest().encode()[:-1] + b"\n"])
def test_what_is_no_part_is_no_use(store: ObjectStore, data: bytes) -> None:
    store.put("parts/train-000000.jsonl", data)
    assert finished_sha256(store, SHARD) is None


def test_rows_come_back_as_they_were(store: ObjectStore, tmp_path: Path) -> None:
    row = {
        column.name: f"{column.name} é" if pa.types.is_string(column.type) else 1000 + n
        for n, column in enumerate(INDEX_SCHEMA)
    } | {"mean_0": 12.3457, "std_2": 1e-4, "image_offset": 2**40, "mask_size": 2**30}
    put_part(store, SHARD, SHA256, [row, row | {"key": "other"}])
    write_index(store, [SHARD], tmp_path / "index.parquet")
    assert (tmp_path / "index.parquet").read_bytes() == dump_index([row, row | {"key": "other"}])


def test_neither_workers_nor_the_driver_import_pandas() -> None:
    """It would take each of them half a second."""
    code = """if True:
        import sys, tempfile
        from pathlib import Path
        from shards.parts import put_part, write_index
        from shards.store import open_store
        folder = tempfile.mkdtemp()
        put_part(open_store(folder), "shards/train-000000.tar", "ab", [{"key": "a", "slice": 1}])
        write_index(open_store(folder), ["shards/train-000000.tar"], Path(folder, "index"))
        assert Path(folder, "index").stat().st_size > 0
        print("pandas" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.parametrize("sizes", [[1], [7], [3, 7, 5], [14], [20, 1, 1], [2] * 11])
def test_parts_are_joined_in_the_shards_order_in_even_groups(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int]
) -> None:
    monkeypatch.setattr(parts, "ROW_GROUP", 7)
    shards, path = put_parts(store, sizes), tmp_path / "index.parquet"
    sha256 = write_index(store, shards, path)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    file = pq.ParquetFile(path)
    assert file.schema_arrow.equals(INDEX_SCHEMA, check_metadata=True)
    assert file.read().column("slice").to_pylist() == list(range(sum(sizes)))
    groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    assert groups == [7] * (sum(sizes) // 7) + [sum(sizes) % 7] * (sum(sizes) % 7 > 0)


def test_the_index_does_not_show_how_its_rows_came_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "ROW_GROUP", 16)
    found = set()
    for number, sizes in enumerate(([40], [16, 16, 8], [1] * 40, [39, 1])):
        store = open_store(str(tmp_path / str(number)))
        for shard, size in zip(put_parts(store, sizes), sizes, strict=True):
            start = int(parts._table(store, shard).column("slice")[0].as_py())
            put_part(store, shard, SHA256, rows(size, SHARD, start))
        found.add(write_index(store, [name(n) for n in range(len(sizes))], tmp_path / "index.parquet"))
    assert len(found) == 1


def test_a_part_that_is_not_there_is_named(store: ObjectStore, tmp_path: Path) -> None:
    shards = put_parts(store, [2, 2])
    with pytest.raises(MissingObject, match=r"parts/train-000002\.jsonl"):
        write_index(store, [*shards, name(2)], tmp_path / "index.parquet")


def test_parts_go_and_nothing_else(store: ObjectStore) -> None:
    put_parts(store, [1] * 20)
    store.put("partsofmine.txt", b"x")
    drop_parts(store)
    assert [entry.key for entry in store.list()] == ["partsofmine.txt"]
