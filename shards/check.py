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
from shards.manifest import Manifest, ShardRecord, load_index, load_manifest
from shards.store import MissingObject, open_store

Progress = Callable[[int, int], None]


def check_packed(uri: str, store: StoreConfig, progress: Progress | None = None) -> Manifest:
    """Verify the data set at ``uri`` completely.

    Raises:
        InputError: it lists every shard that is missing, damaged, or not what manifest and index say.
    """
    source = open_store(uri, store)
    manifest = load_manifest(source)
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in load_index(source, manifest).to_pylist():
        rows[row["shard"]].append(row)
    faults: list[str] = []
    for number, shard in enumerate(manifest.shards):
        try:
            _check_shard(source.get(shard.name), shard, rows[shard.name], manifest.image_suffix)
        except MissingObject:
            faults.append(f"{shard.name}: missing")
        except InputError as error:
            faults.append(f"{shard.name}: {error}")
        if progress is not None:
            progress(number + 1, len(manifest.shards))
    if faults:
        raise InputError(
            f"{uri}: {len(faults)} of {len(manifest.shards)} shards are not as packed:\n  "
            + "\n  ".join(faults)
            + "\nCopy them again, or pack the data set anew to another prefix"
        )
    return manifest


def _check_shard(data: bytes, shard: ShardRecord, rows: list[dict[str, Any]], image_suffix: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != shard.sha256:
        raise InputError(f"sha256 {found[:12]}…, the manifest says {shard.sha256[:12]}… ({len(data)} bytes)")
    expected = {
        f"{row['key']}.{suffix}": (row[f"{part}_offset"], row[f"{part}_size"])
        for row in rows
        for part, suffix in (("image", image_suffix), ("mask", MASK_SUFFIX), ("meta", META_SUFFIX))
    }
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
    for member in members:
        if expected.pop(member.name, None) != (member.offset_data, member.size):
            raise InputError(f"member {member.name!r} is not the one the index lists")
        payload = data[member.offset_data : member.offset_data + member.size]
        if member.name.endswith(META_SUFFIX):
            json.loads(payload)
        elif member.name.endswith(MASK_SUFFIX):
            decode_mask(payload, member.name)
        else:
            decode_image(payload, member.name)
    if expected:
        raise InputError(f"member {min(expected)!r} is in the index but not in the shard")
