"""A packed data set, byte by byte: every shard re-hashed, every member known and where the index says."""

import hashlib
import io
import json
import tarfile
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from shards.config import StoreConfig
from shards.encode import MASK_SUFFIX, META_SUFFIX, decode_image, decode_mask
from shards.errors import InputError
from shards.manifest import SHARDS, Manifest, ShardRecord, load_index, load_manifest
from shards.store import MissingObject, ObjectStore, open_store

Progress = Callable[[int, int], None]
Row = dict[str, Any]


def check_packed(uri: str, store: StoreConfig, progress: Progress | None = None) -> Manifest:
    """Verify the data set at ``uri`` completely; ``progress`` gets the shards done and all.

    Raises:
        InputError: it lists every shard that is missing, damaged, unknown, or not what manifest and index say.
    """
    source = open_store(uri, store)
    manifest = load_manifest(source)
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in load_index(source, manifest).to_pylist():
        rows[row["shard"]].append(row)
    faults: list[str] = []
    for number, shard in enumerate(manifest.shards, start=1):
        try:
            _check_shard(source, manifest, shard, rows[shard.name])
        except InputError as fault:
            faults.append(f"{shard.name}: {fault}")
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


def _check_shard(source: ObjectStore, manifest: Manifest, shard: ShardRecord, rows: list[Row]) -> None:
    """Raise ``InputError`` for the first fault of a shard."""
    try:
        data = source.get(shard.name)
    except MissingObject as error:
        raise InputError("is missing") from error
    found = hashlib.sha256(data).hexdigest()
    if found != shard.sha256:
        raise InputError(
            f"sha256 is {found[:12]}…, the manifest says {shard.sha256[:12]}… "
            f"({len(data)} bytes, packed were {shard.bytes})"
        )
    try:
        # "r:" is a plain tar: stock readers of the index's offsets cannot look into a compressed one.
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            members = {member.name: member for member in tar.getmembers()}
            num_members = len(tar.getmembers())
    except tarfile.TarError as error:
        raise InputError(f"is no tar file ({error})") from error
    for row in rows:
        _check_sample(data, members, row, manifest)
    if members or num_members != 3 * len(rows):
        surplus = ", ".join(sorted(members)) or "one name twice"
        raise InputError(f"holds members that the index does not list: {surplus}")


def _check_sample(data: bytes, members: dict[str, tarfile.TarInfo], row: Row, manifest: Manifest) -> None:
    """Check one sample's three members, and take them off ``members``."""

    def payload(part: str, suffix: str) -> tuple[str, bytes]:
        name = f"{row['key']}.{suffix}"
        start, size = row[f"{part}_offset"], row[f"{part}_size"]
        member = members.pop(name, None)
        if member is None or not member.isreg() or (member.offset_data, member.size) != (start, size):
            found = "none" if member is None else f"{member.size} bytes at {member.offset_data}"
            raise InputError(f"member {name}: the index says {size} bytes at {start}, found {found}")
        return name, data[start : start + size]

    name, image = payload("image", manifest.image_suffix)
    pixels_HWC = decode_image(image, name)
    mask_name, mask = payload("mask", MASK_SUFFIX)
    mask_HW = decode_mask(mask, mask_name)
    size = (manifest.height, manifest.width)
    if pixels_HWC.shape[:2] != size or mask_HW.shape != size:
        raise InputError(
            f"{row['key']}: image {pixels_HWC.shape[:2]}, mask {mask_HW.shape}, manifest {size} pixels"
        )
    if int(mask_HW.sum()) != row["tumour_pixels"]:
        raise InputError(
            f"{mask_name}: {int(mask_HW.sum())} tumour pixels, the index says {row['tumour_pixels']}"
        )
    meta_name, meta = payload("meta", META_SUFFIX)
    _check_meta(meta, meta_name, row)


def _check_meta(data: bytes, name: str, row: Row) -> None:
    try:
        meta = json.loads(data)
    except ValueError as error:
        raise InputError(f"{name}: is no JSON ({error})") from error
    for key in ("patient", "slice", "num_slices", "institution", "tumour_pixels"):
        said = meta.get(key) if isinstance(meta, dict) else None
        if said != row[key]:
            raise InputError(f"{name}: says {key} {said!r}, the index {row[key]!r}")
