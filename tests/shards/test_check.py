import gzip
import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packed_set import PackedSet, tar_of

from shards.check import check_packed
from shards.config import StoreConfig
from shards.encode import encode_image, encode_mask, encode_meta
from shards.errors import InputError
from shards.manifest import load_manifest
from shards.meta import Facts
from shards.reader import PackedData
from shards.store import open_store

TRAIN_0, TRAIN_1, TRAIN_2, VAL, TEST = (
    f"shards/{name}.tar"
    for name in ("train-000000", "train-000001", "train-000002", "val-000000", "test-000000")
)


@pytest.fixture
def data(packed: Path) -> PackedSet:
    return PackedSet.read(packed)


def fault_of(data: PackedSet, folder: Path) -> str:
    data.write(folder)
    with pytest.raises(InputError) as caught:
        check_packed(str(folder), StoreConfig())
    return str(caught.value)


def first_of(data: PackedSet, shard: str, suffix: str) -> tuple[str, bytes]:
    return next(member for member in data.members(shard) if member[0].endswith(suffix))


def test_a_packed_data_set_is_whole(packed: Path) -> None:
    seen: list[tuple[int, int]] = []
    manifest = check_packed(str(packed), StoreConfig(), lambda done, of: seen.append((done, of)))
    assert manifest == load_manifest(open_store(str(packed)))
    assert seen == [(n, len(manifest.shards)) for n in range(1, len(manifest.shards) + 1)]


def test_a_known_spacing_is_welcome(data: PackedSet, tmp_path: Path) -> None:
    name, meta = first_of(data, VAL, ".json")
    data.put_member(VAL, name, encode_meta(json.loads(meta) | {"spacing_mm": [5, 0.9, 0.9]}))
    data.write(tmp_path)
    check_packed(str(tmp_path), StoreConfig())
    assert PackedData(str(tmp_path)).training("val").read_facts(0) == Facts(
        tuple(json.loads(meta)["missing"]), (5.0, 0.9, 0.9)
    )


@pytest.mark.parametrize("encoding", ["webp", "raw"])
def test_other_encodings_are_whole_too(pack_to: Any, tmp_path: Path, encoding: str) -> None:
    manifest = pack_to(tmp_path / "data", encoding=encoding)
    assert check_packed(str(tmp_path / "data"), StoreConfig()) == manifest


def test_every_fault_shows_in_one_message(data: PackedSet, tmp_path: Path) -> None:
    data.files[TRAIN_0] = data.files[TRAIN_0].replace(b"ustar", b"ustaR", 1)
    data.files[TRAIN_1] = data.files[TRAIN_1][:-512]
    name, image = first_of(data, TRAIN_2, ".png")
    data.put_shard(TRAIN_2, data.files[TRAIN_2].replace(image, bytes(len(image))))
    name, _ = first_of(data, VAL, ".json")
    data.put_member(VAL, name, pickle.dumps({"patient": "x"}))
    del data.files[TEST]
    data.files["shards/train-000099.tar"] = b"stray"

    first, *faults, last = fault_of(data, tmp_path).split("\n")
    assert first == f"{tmp_path}: 6 of its shards are not as packed:"
    said = (
        (TRAIN_0, "sha256 is "),
        (TRAIN_1, "sha256 is "),
        (TRAIN_2, ".image.png: damaged image"),
        (VAL, f"{name}: is no JSON"),
        (TEST, "is missing"),
        ("shards/train-000099.tar", "is not in the manifest"),
    )
    for fault, (shard, what) in zip(faults, said, strict=True):
        assert fault.startswith(f"  {shard}: ")
        assert what in fault
    assert last == "Copy them again, or pack the data set anew to another prefix"


def test_a_shard_of_other_bytes_is_found_by_its_members(data: PackedSet, tmp_path: Path) -> None:
    whole = data.files[VAL]
    for harmed in (b"x" * len(whole), gzip.compress(whole).ljust(len(whole), b"\0"), bytes(len(whole))):
        data.put_shard(VAL, harmed)
        assert f"  {VAL}: {data.rows(VAL)[0]['key']}.image.png: " in fault_of(data, tmp_path)


def test_a_link_in_the_place_of_a_member_is_found(data: PackedSet, tmp_path: Path) -> None:
    name, _ = data.members(VAL)[0]
    link = tarfile.TarInfo(name)
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    data.put_shard(VAL, link.tobuf(tarfile.USTAR_FORMAT) + data.files[VAL][512:])
    assert f"{VAL}: {name}: {name} at byte 0 is of type 2, not a regular file" in fault_of(data, tmp_path)


def test_a_hidden_member_of_a_known_name_is_found(data: PackedSet, tmp_path: Path) -> None:
    first, *rest = data.members(VAL)
    out = io.BytesIO(tar_of([(first[0], first[1][::-1]), *rest])[:-1024])
    out.seek(0, io.SEEK_END)
    out.write(tar_of([first]))
    data.put_shard(VAL, out.getvalue())
    manifest = data.manifest()
    assert f"{VAL}: its members make " in fault_of(data, tmp_path)
    (record,) = [s for s in manifest["shards"] if s["name"] == VAL]
    record["bytes"] -= 512 + len(first[1]) + -len(first[1]) % 512
    data.put_manifest(manifest)
    assert f"{VAL}: after its last member: {first[0]} at byte " in fault_of(data, tmp_path)


def test_pixels_that_disagree_with_the_index_are_found(data: PackedSet, tmp_path: Path) -> None:
    row = data.rows(VAL)[0]
    data.change_row(row["key"], tumour_pixels=1000)
    said = f"{VAL}: {row['key']}.mask.png: {row['tumour_pixels']} tumour pixels, the index says 1000"
    assert said in fault_of(data, tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"patient": "other"}, "says patient 'other', the index 'PHANTOM_"),
        ({"institution": "ZZ"}, "says institution 'ZZ', the index "),
        ({"num_slices": 99}, "says num_slices '99', the index "),
        ({"slice": True}, "says slice 'True', the index 1"),
        ({"tumour_pixels": 0.0}, "says tumour_pixels '0.0', the index "),
        ({"mean": [1.0, 2.0, 3.0]}, "says mean_0 '1.0', the index "),
        ({"std": [1.0, 2.0]}, r"says std '[1.0, 2.0]', not three numbers"),
        ({"std": "flat"}, r"says std 'flat', not three numbers"),
        ({"missing": ["flair"]}, "says that ['flair'] is missing; only pre and post can be"),
        ({"spacing_mm": [1.0, 1.0]}, "says spacing_mm '[1.0, 1.0]', not three lengths above 0 and up to 100"),
        ({"spacing_mm": [5.0, 0.0, 1.0]}, "says spacing_mm '[5.0, 0.0, 1.0]', not three lengths"),
        ({"spacing_mm": [5.0, True, 1.0]}, "says spacing_mm '[5.0, True, 1.0]', not three lengths"),
        ({"spacing_mm": 1.0}, "says spacing_mm '1.0', not three lengths"),
        ({"surprise": 1}, "surprise, tumour_pixels', a sample has institution, mean, "),
    ],
)
def test_json_that_disagrees_with_the_index_is_found(
    data: PackedSet, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    name, meta = first_of(data, VAL, ".json")
    data.put_member(VAL, name, encode_meta(json.loads(meta) | changes))
    assert f"{VAL}: {name}: " in (fault := fault_of(data, tmp_path))
    assert said in fault


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        (b"[]", "has 'list', a sample has institution, "),
        (b'{"slice": 1}', "has 'slice', a sample has institution, "),
        (b"{", "is no JSON"),
        (b"\xff", "is no JSON"),
        (b'{"slice": 1, "slice": 1}', "is no JSON (the name 'slice' comes twice"),
        (pickle.dumps([1]), "is no JSON"),
    ],
)
def test_json_of_another_form_is_found(data: PackedSet, tmp_path: Path, meta: bytes, said: str) -> None:
    name, _ = first_of(data, VAL, ".json")
    data.put_member(VAL, name, meta)
    assert f"{VAL}: {name}: {said}" in fault_of(data, tmp_path)


@pytest.mark.parametrize(
    ("suffix", "payload", "said"),
    [
        (".image.png", pickle.dumps([1]), "damaged image"),
        (
            ".image.png",
            encode_image(np.zeros((2, 2, 3), np.uint8), "png"),
            "(2, 2) pixels, the manifest says (32, 32)",
        ),
        (".mask.png", b"\x89PNG", "damaged mask"),
        (".mask.png", encode_mask(np.zeros((1, 1), np.uint8)), "(1, 1) pixels, the manifest says (32, 32)"),
    ],
)
def test_pixels_of_another_kind_are_found(
    data: PackedSet, tmp_path: Path, suffix: str, payload: bytes, said: str
) -> None:
    name, _ = first_of(data, VAL, suffix)
    data.put_member(VAL, name, payload)
    assert f"{VAL}: {name}: {said}" in fault_of(data, tmp_path)


def test_a_data_id_that_is_not_of_its_provenance_is_found(data: PackedSet, tmp_path: Path) -> None:
    data.put_manifest(data.manifest() | {"data_id": "0123456789abcdef"})
    assert "manifest.json: data_id is 0123456789abcdef, its provenance gives " in fault_of(data, tmp_path)
