import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packed_set import PackedSet, sealed

from shards.config import SliceSplit
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
        (lambda m: m | {"format": "bts-shards/2"}, r"format: .*'bts-shards/1', found 'bts-shards/2'"),
        (lambda m: m | {"surprise": 1}, "surprise: Extra inputs"),
        (lambda m: {k: v for k, v in m.items() if k != "shards"}, "shards: Field required"),
        (lambda m: m | {"provenance": []}, "provenance: "),
        (lambda m: m | {"data_id": "0" * 15 + "G"}, "data_id: .*, found '000000000000000G'"),
        (lambda m: m | {"height": 0}, "height: .*, found 0"),
        (lambda m: m | {"width": 16385}, "width: .*, found 16385"),
        (lambda m: m | {"width": "32"}, "width: .*, found '32'"),
        (lambda m: m | {"height": 32.5}, "height: .*, found 32.5"),
        (lambda m: m | {"height": True}, "height: .*, found True"),
        (lambda m: m | {"height": 10**4000}, "height: .*, found 1000000"),
        (lambda m: m | {"height": [[[[1]]]]}, "height: .*, found a list"),
        (
            lambda m: m | {"image_suffix": "image.pkl"},
            "whole file: image_suffix is 'image.pkl', that of png is image",
        ),
        (lambda m: m | {"index_sha256": "f" * 63}, "index_sha256: .*, found 'fff"),
        (lambda m: m | {"shards": []}, "shards: .*, found a list"),
        (lambda m: m | {"shards": [7]}, "shards.0: .*, found 7"),
        (
            lambda m: m | {"patients": {"train": []}},
            "whole file: patients are listed for train, not for train, val, t",
        ),
        (
            lambda m: m | {"patients": m["patients"] | {"val": m["patients"]["test"]}},
            "whole file: patient PHANTOM_.* listed 2 times",
        ),
        (
            lambda m: m | {"patients": m["patients"] | {"val": ["a", "a"]}},
            "whole file: patient a is listed 2 times",
        ),
        (lambda m: m | {"patients": m["patients"] | {"val": ["a/b"]}}, "patients.val.0: .*, found 'a/b'"),
        (lambda m: m | {"patients": m["patients"] | {"val": ["a\n"]}}, r"patients.val.0: .*, found 'a\\n'"),
        (
            lambda m: m | {"patients": m["patients"] | {"val": ["\ud800"]}},
            r"patients.val.0: .*, found '\\ud800'",
        ),
        (
            lambda m: m | {"shards": m["shards"][1:]},
            "whole file: shards/train-000001.tar stands where .*train-000000.tar",
        ),
        (
            lambda m: m | {"shards": m["shards"][::-1]},
            "whole file: shards/test-000000.tar stands where .*train-000000.tar",
        ),
        (
            lambda m: m | {"shards": m["shards"][:1] * 2},
            "whole file: shards/train-000000.tar stands where .*train-000001",
        ),
    ],
)
def test_a_manifest_of_another_form_is_refused_with_the_field(
    packed: Path, tmp_path: Path, spoil: Callable[[dict[str, Any]], Any], said: str
) -> None:
    (tmp_path / "manifest.json").write_bytes(sealed(spoil(PackedSet.read(packed).manifest())))
    with pytest.raises(InputError, match=rf"manifest\.json is not a bts-shards/1 manifest \({said}.* again$"):
        find_manifest(open_store(str(tmp_path)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "pipe:curl example.org"),
        ("name", "s3://bucket/shards/train-000001.tar"),
        ("name", "/shards/train-000001.tar"),
        ("name", "shards/../train-000001.tar"),
        ("name", "shards/train-1.tar"),
        ("name", "shards/train-0000001.tar"),
        ("name", "shards/train-٠٠٠٠٠١.tar"),
        ("name", "shards/train-000001.tar\n"),
        ("name", "shards\\train-000001.tar"),
        ("name", 7),
        ("name", None),
        ("samples", 0),
        ("samples", 1 << 40),
        ("samples", 5.0),
        ("samples", "5"),
        ("bytes", 0),
        ("bytes", -512),
        ("bytes", 1 << 50),
        ("sha256", "A" * 64),
        ("sha256", "a" * 65),
        ("sha256", ""),
        ("split", "all"),
    ],
)
def test_a_shard_that_cannot_be_is_refused_by_name(
    packed: Path, tmp_path: Path, field: str, value: object
) -> None:
    data = PackedSet.read(packed)
    manifest = data.manifest()
    manifest["shards"][1][field] = value
    name = value if field == "name" else "shards/train-000001.tar"
    data.put_manifest(manifest)
    data.write(tmp_path)
    said = f"(shards.1.{field} of {name!r}: "
    with pytest.raises(
        InputError, match=re.escape(said) + r".*, found .*; copy it again, or pack the data again$"
    ):
        find_manifest(open_store(str(tmp_path)))


def test_a_shard_of_another_split_is_refused(packed: Path, tmp_path: Path) -> None:
    data = PackedSet.read(packed)
    manifest = data.manifest()
    manifest["shards"][0]["split"] = "val"
    data.put_manifest(manifest)
    data.write(tmp_path)
    with pytest.raises(InputError, match=r"shards\.0: shards/train-000000\.tar is said to be of split val"):
        find_manifest(open_store(str(tmp_path)))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda data: data[:99], "Invalid control character|Unterminated|Expecting"),
        (lambda data: b"", "Expecting value"),
        (lambda data: b"[]", "is a list|valid dictionary"),
        (lambda data: b"\xff" + data, "invalid start byte"),
        (
            lambda data: data.replace(b'"height": 32', b'"height": 32, "height": 32'),
            "the name 'height' comes twice",
        ),
        (lambda data: data.replace(b'"height": 32', b'"height": NaN'), "NaN is no finite number"),
        (lambda data: data.replace(b'"height": 32', b'"height": 1e999'), "1e999 is no finite number"),
        (lambda data: data.replace(b'"height": 32', b'"height": ' + b"3" * 9999), "Exceeds the limit"),
        (lambda data: data.replace(b'"height": 32', b'"height": ' + b"[" * 99_999), "nested too deeply"),
    ],
)
def test_a_file_that_is_no_strict_json_is_refused(
    packed: Path, tmp_path: Path, spoil: Callable[[bytes], bytes], said: str
) -> None:
    (tmp_path / "manifest.json").write_bytes(spoil((packed / "manifest.json").read_bytes()))
    with pytest.raises(
        InputError, match=rf"manifest\.json is not a bts-shards/1 manifest \(whole file: .*({said})"
    ):
        find_manifest(open_store(str(tmp_path)))


def test_any_bit_of_a_manifest_that_is_changed_is_noticed(packed: Path, tmp_path: Path) -> None:
    whole = (packed / "manifest.json").read_bytes()
    store, path = open_store(str(tmp_path)), tmp_path / "manifest.json"
    path.write_bytes(whole)
    find_manifest(store)
    random = Random(0)
    for _ in range(1000):
        spoilt = bytearray(whole)
        spoilt[random.randrange(len(whole))] ^= 1 << random.randrange(8)
        path.write_bytes(spoilt)
        with pytest.raises(InputError, match=r"manifest\.json is not "):
            find_manifest(store)


@pytest.mark.parametrize("spoil", [lambda d: d.replace(b"phantom", b"phantoms"), lambda d: d + b"\n"])
def test_a_manifest_that_could_be_true_but_was_not_written_so_is_refused(
    packed: Path, tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    (tmp_path / "manifest.json").write_bytes(spoil((packed / "manifest.json").read_bytes()))
    with pytest.raises(
        InputError, match=r"not as it was written: its manifest_sha256 does not fit; copy it again"
    ):
        find_manifest(open_store(str(tmp_path)))


def test_a_manifest_from_before_there_was_a_seal_is_read(packed: Path, tmp_path: Path) -> None:
    data = PackedSet.read(packed)
    (tmp_path / "manifest.json").write_text(json.dumps(data.manifest()))
    assert find_manifest(open_store(str(tmp_path))) == find_manifest(open_store(str(packed)))


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
        (lambda rows: rows[1:], r"train-000000\.tar 5 samples, the index 4"),
        (
            lambda rows: rows[1:5] + rows[:1] + rows[5:],
            r"index\.parquet: shards/train-000000\.tar: .*_000\d: ",
        ),
        (lambda rows: [*rows, rows[-1]], r"test-000000\.tar \d samples, the index \d"),
        (lambda rows: rows * 3, r"index\.parquet has \d+ rows, the manifest's shards \d+ samples"),
    ],
    ids=["a row less", "order within a shard", "a row more", "many more"],
)
def test_an_index_that_disagrees_with_the_manifest_is_refused(
    packed: Path, tmp_path: Path, change: Callable[[Rows], Rows], said: str
) -> None:
    folder, manifest = with_index(packed, tmp_path, change)
    with pytest.raises(InputError, match=rf"{said}.*; pack the data again$"):
        load_index(open_store(str(folder)), manifest)


def test_a_changed_index_is_refused(packed: Path, tmp_path: Path) -> None:
    manifest = load_manifest(open_store(str(packed)))
    data = bytearray((packed / "index.parquet").read_bytes())
    data[100] ^= 1
    (tmp_path / "index.parquet").write_bytes(data)
    with pytest.raises(InputError, match=r"index\.parquet has sha256 .*changed or damaged"):
        load_index(open_store(str(tmp_path)), manifest)


def test_a_missing_index_is_named(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"index\.parquet is missing; copy it again, or pack"):
        load_index(open_store(str(tmp_path)), load_manifest(open_store(str(packed))))


def test_an_index_with_other_columns_is_refused(packed: Path, tmp_path: Path) -> None:
    out = io.BytesIO()
    pq.write_table(pa.table({"key": ["a"]}), out)
    (tmp_path / "index.parquet").write_bytes(out.getvalue())
    manifest = load_manifest(open_store(str(packed)))
    manifest = manifest.model_copy(update={"index_sha256": hashlib.sha256(out.getvalue()).hexdigest()})
    with pytest.raises(InputError, match="has other columns than bts-shards/1 has"):
        load_index(open_store(str(tmp_path)), manifest)


@pytest.fixture
def manifest(packed: Path) -> Manifest:
    return load_manifest(open_store(str(packed)))


def load_as_index(data: bytes, manifest: Manifest, folder: Path) -> pa.Table:
    """Load these bytes as an index that the manifest vouches for."""
    (folder / "index.parquet").write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    return load_index(open_store(str(folder)), manifest.model_copy(update={"index_sha256": sha256}))


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", b"PAR1\xff\xff\xff\x7fPAR1"])
def test_an_index_that_is_no_parquet_is_refused(data: bytes, manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"index\.parquet is no readable Parquet file \(.*; copy it again, or pack"
    ):
        load_as_index(data, manifest, tmp_path)


def test_a_vouched_for_index_of_changed_bytes_is_refused_or_could_be_true(
    packed: Path, manifest: Manifest, tmp_path: Path
) -> None:
    random = Random(0)
    whole = (packed / "index.parquet").read_bytes()
    refused = 0
    for _ in range(300):
        spoilt = bytearray(whole)
        spoilt[random.randrange(len(whole))] ^= 1 << random.randrange(8)
        try:
            found = load_as_index(bytes(spoilt), manifest, tmp_path)
        except InputError as error:
            assert "index.parquet" in str(error)  # noqa: PT017 - one of two good outcomes
            refused += 1
        else:
            assert (found.schema, len(found)) == (INDEX_SCHEMA, manifest.num_samples())
    assert refused > 100


def test_text_that_is_not_utf8_is_refused(packed: Path, manifest: Manifest, tmp_path: Path) -> None:
    table = pq.read_table(packed / "index.parquet")
    odd = pa.Array.from_buffers(
        pa.string(), len(table), pa.array([b"\xff"] * len(table), pa.binary()).buffers()
    )
    out = io.BytesIO()
    pq.write_table(table.set_column(4, "institution", odd), out)
    with pytest.raises(InputError, match=r"index\.parquet is no readable Parquet file \(.*UTF-?8"):
        load_as_index(out.getvalue(), manifest, tmp_path)


def test_a_patient_may_be_in_several_splits_where_slices_are_split_and_once_in_each(
    packed: Path, tmp_path: Path
) -> None:
    fields = PackedSet.read(packed).manifest()
    fields["provenance"]["split"] = SliceSplit().model_dump(mode="json")
    fields["patients"]["val"] = fields["patients"]["test"]
    store = open_store(str(tmp_path))
    store.put("manifest.json", sealed(fields))
    assert load_manifest(store).splits_patients
    fields["patients"]["val"] = fields["patients"]["test"] * 2
    store.put("manifest.json", sealed(fields))
    with pytest.raises(InputError, match=r"patient PHANTOM_.* is listed 2 times"):
        load_manifest(store)
