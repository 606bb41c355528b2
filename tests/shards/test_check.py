import gzip
import hashlib
import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from shards.check import check_packed
from shards.config import StoreConfig
from shards.encode import encode_image, encode_mask
from shards.errors import InputError
from shards.manifest import dump_index, load_manifest
from shards.store import open_store

TRAIN_0, TRAIN_1, TRAIN_2, VAL, TEST = (
    f"shards/{name}.tar"
    for name in ("train-000000", "train-000001", "train-000002", "val-000000", "test-000000")
)

MEMBERS = {"image": "image.png", "mask": "mask.png", "meta": "json"}


@pytest.fixture
def copied(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def fault_of(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        check_packed(str(folder), StoreConfig())
    return str(caught.value)


def change_manifest(folder: Path, change: Callable[[dict[str, object]], None]) -> None:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def replace_shard(folder: Path, name: str, data: bytes) -> None:
    """Put other bytes in a shard's place, and vouch for them in the manifest."""
    (folder / name).write_bytes(data)

    def vouch(manifest: dict[str, object]) -> None:
        (shard,) = [s for s in manifest["shards"] if s["name"] == name]  # type: ignore[attr-defined]
        shard.update(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))

    change_manifest(folder, vouch)


def change_rows(folder: Path, shard: str, key: str | None = None, **changes: object) -> None:
    """Change a sample (the first, without a key) of a shard in the index, and vouch for it in the manifest."""
    rows = pq.read_table(folder / "index.parquet").to_pylist()
    next(row for row in rows if row["shard"] == shard and key in (None, row["key"])).update(changes)
    data = dump_index(rows)
    (folder / "index.parquet").write_bytes(data)
    change_manifest(folder, lambda m: m.update(index_sha256=hashlib.sha256(data).hexdigest()))


def members_of(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]


def tar_of(members: list[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def with_member(path: Path, suffix: str, data: bytes) -> bytes:
    """The shard with the first member of that suffix exchanged, filled up to its size to keep all offsets."""
    members = members_of(path)
    name = next(name for name in members if name.endswith(suffix))
    assert len(data) <= len(members[name])
    return tar_of(list({**members, name: data.ljust(len(members[name]), b" ")}.items()))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)


def test_a_packed_data_set_is_whole(packed: Path) -> None:
    seen: list[tuple[int, int]] = []
    manifest = check_packed(str(packed), StoreConfig(), lambda done, of: seen.append((done, of)))
    assert manifest == load_manifest(open_store(str(packed)))
    assert seen == [(n, len(manifest.shards)) for n in range(1, len(manifest.shards) + 1)]


def test_every_fault_shows_in_one_message(copied: Path) -> None:
    flip(copied / TRAIN_0)
    (copied / TRAIN_1).write_bytes((copied / TRAIN_1).read_bytes()[:-512])
    replace_shard(copied, TRAIN_2, tar_of([*members_of(copied / TRAIN_2).items(), ("run.sh", b"#!")]))
    replace_shard(copied, VAL, with_member(copied / VAL, ".json", pickle.dumps({"patient": "x"})))
    change_rows(copied, TEST, image_offset=1024)
    (copied / "shards" / "train-000099.tar").write_bytes(b"stray")

    first, *faults, last = fault_of(copied).split("\n  ")
    faults += last.split("\n")[:1]
    assert first == f"{copied}: 6 of its shards are not as packed:"
    assert [fault.partition(": ")[0] for fault in faults] == [
        TRAIN_0,
        TRAIN_1,
        TRAIN_2,
        VAL,
        TEST,
        "shards/train-000099.tar",
    ]
    for fault, said in zip(
        faults,
        (
            "sha256 is ",
            "sha256 is ",
            "holds members that the index does not list: run.sh",
            ".json: is no JSON",
            "bytes at 1024, found ",
            "is not in the manifest",
        ),
        strict=True,
    ):
        assert said in fault
    assert "Copy them again, or pack the data set anew" in last


def test_a_missing_shard_is_found(copied: Path) -> None:
    (copied / VAL).unlink()
    assert f"{VAL}: is missing" in fault_of(copied)


@pytest.mark.parametrize("data", [b"", b"x" * 1024, b"\x1f\x8b" + bytes(600)])
def test_a_shard_that_is_no_tar_is_found(copied: Path, data: bytes) -> None:
    replace_shard(copied, VAL, data)
    fault = fault_of(copied)
    assert f"{VAL}: is no tar file" in fault or f"{VAL}: member " in fault


def test_a_compressed_shard_is_found(copied: Path) -> None:
    replace_shard(copied, VAL, gzip.compress((copied / VAL).read_bytes()))
    assert f"{VAL}: is no tar file" in fault_of(copied)


def test_a_member_less_and_a_member_twice_are_found(copied: Path) -> None:
    members = list(members_of(copied / VAL).items())
    replace_shard(copied, VAL, tar_of(members[:-1]))
    assert f"{VAL}: member {members[-1][0]}: the index says" in fault_of(copied)
    replace_shard(copied, VAL, tar_of([*members, members[-1]]))
    assert f"{VAL}: member {members[-1][0]}: the index says" in fault_of(copied)
    replace_shard(copied, VAL, tar_of([members[0], *members]))
    assert VAL in fault_of(copied)


def test_a_link_in_the_place_of_an_empty_member_is_found(copied: Path) -> None:
    members = members_of(copied / VAL)
    name = next(iter(members))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        link = tarfile.TarInfo(name)
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    replace_shard(copied, VAL, out.getvalue())
    change_rows(copied, VAL, image_size=0)
    assert f"{VAL}: member {name}" in fault_of(copied)


def test_pixels_that_disagree_with_the_index_are_found(copied: Path) -> None:
    change_rows(copied, VAL, tumour_pixels=1000)
    assert ".mask.png: " in (fault := fault_of(copied))
    assert "tumour pixels, the index says 1000" in fault


@pytest.mark.parametrize(
    ("column", "value"), [("patient", "other"), ("institution", "ZZ"), ("num_slices", 99)]
)
def test_json_that_disagrees_with_the_index_is_found(copied: Path, column: str, value: object) -> None:
    change_rows(copied, VAL, **{column: value})
    fault = fault_of(copied)
    assert f".json: says {column} " in fault
    assert f"the index {value!r}" in fault


@pytest.mark.parametrize("data", [b"[]", b"1", b'{"slice": 1}'])
def test_json_of_another_form_is_found(copied: Path, data: bytes) -> None:
    replace_shard(copied, VAL, with_member(copied / VAL, ".json", data))
    assert ".json: says patient None" in fault_of(copied)


def reindex(folder: Path, shard: str, data: bytes) -> None:
    """Put other bytes in a shard's place, and let index and manifest say where its members lie in them."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        places = {m.name: m for m in tar.getmembers()}
    for key in {name.partition(".")[0] for name in places}:
        members = {part: places[f"{key}.{suffix}"] for part, suffix in MEMBERS.items()}
        spans = {f"{part}_offset": m.offset_data for part, m in members.items()}
        change_rows(folder, shard, key, **spans, **{f"{part}_size": m.size for part, m in members.items()})
    replace_shard(folder, shard, data)


def test_an_image_of_another_size_is_found(copied: Path) -> None:
    members = members_of(copied / VAL)
    first = next(iter(members))
    small = encode_image(np.zeros((2, 2, 3), np.uint8), "png")
    reindex(copied, VAL, tar_of(list({**members, first: small}.items())))
    assert "image (2, 2), mask (32, 32), manifest (32, 32) pixels" in fault_of(copied)


def test_a_hidden_second_member_of_one_name_is_found(copied: Path) -> None:
    first, *rest = members_of(copied / VAL).items()
    reindex(copied, VAL, tar_of([(first[0], b"hidden"), first, *rest]))
    assert "holds members that the index does not list: one name twice" in fault_of(copied)


@pytest.mark.parametrize(
    ("suffix", "data", "said"),
    [
        (".image.png", pickle.dumps([1]), ".image.png: damaged image"),
        (".mask.png", b"\x89PNG", ".mask.png: damaged mask"),
        (".json", b"{", ".json: is no JSON"),
        (".json", b"\xff", ".json: is no JSON"),
    ],
)
def test_a_member_of_another_kind_is_found(copied: Path, suffix: str, data: bytes, said: str) -> None:
    replace_shard(copied, VAL, with_member(copied / VAL, suffix, data))
    assert said in fault_of(copied)


def test_a_mask_that_is_not_one_bit_is_found(copied: Path) -> None:
    whole = len(next(d for n, d in members_of(copied / VAL).items() if n.endswith(".mask.png")))
    mask = encode_mask(np.zeros((1, 1), np.uint8))
    assert len(mask) <= whole
    replace_shard(copied, VAL, with_member(copied / VAL, ".mask.png", mask))
    assert "mask (1, 1), manifest (32, 32) pixels" in fault_of(copied)
