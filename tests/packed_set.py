"""A packed data set in memory, to be damaged: its bytes alone, or with books that are put right again."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq

from shards.encode import MASK_SUFFIX, META_SUFFIX
from shards.manifest import INDEX, MANIFEST, dump_index
from shards.writer import ShardWriter

Members = list[tuple[str, bytes]]
Row = dict[str, Any]
Damage = Callable[[Random, "PackedSet"], tuple[str, ...]]
"""Damages the data set, and says which names the error must have."""


def tar_of(members: Members) -> bytes:
    writer = ShardWriter()
    for name, data in members:
        writer.add(name, data)
    return writer.finish()


def sealed(manifest: dict[str, Any]) -> bytes:
    """The manifest's bytes, with the sha256 of those that it has without it."""

    def dumped(fields: dict[str, Any]) -> bytes:
        return (json.dumps(fields, indent=1, sort_keys=True) + "\n").encode()

    seal = hashlib.sha256(dumped(manifest)).hexdigest()
    return dumped(manifest | {"manifest_sha256": seal})


class PackedSet:
    """Files by key.  What sets ``files`` leaves all hashes as they were; the methods make them agree again."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = dict(files)

    @classmethod
    def read(cls, folder: Path) -> "PackedSet":
        paths = (path for path in folder.rglob("*") if path.is_file())
        return cls({path.relative_to(folder).as_posix(): path.read_bytes() for path in paths})

    @property
    def shards(self) -> list[str]:
        """Names of the shards, as the manifest lists them."""
        return [shard["name"] for shard in self.manifest()["shards"]]

    def members(self, shard: str) -> Members:
        with tarfile.open(fileobj=io.BytesIO(self.files[shard])) as tar:
            return [(m.name, tar.extractfile(m).read()) for m in tar.getmembers()]  # type: ignore[union-attr]

    def rows(self, shard: str | None = None) -> list[Row]:
        return [dict(row) for row in _rows(self.files[INDEX]) if shard in (None, row["shard"])]

    def manifest(self) -> dict[str, Any]:
        fields: dict[str, Any] = json.loads(self.files[MANIFEST])
        fields.pop("manifest_sha256")
        return fields

    def put_manifest(self, fields: dict[str, Any]) -> None:
        self.files[MANIFEST] = sealed(fields)

    def put_index(self, data: bytes) -> None:
        self.files[INDEX] = data
        self.put_manifest(self.manifest() | {"index_sha256": hashlib.sha256(data).hexdigest()})

    def put_rows(self, rows: list[Row]) -> None:
        self.put_index(dump_index(rows))

    def change_row(self, key: str, /, **changes: object) -> None:
        self.put_rows([row | changes if row["key"] == key else row for row in self.rows()])

    def put_shard(self, shard: str, data: bytes) -> None:
        """Other bytes for a shard, which the manifest vouches for."""
        self.files[shard] = data
        manifest = self.manifest()
        (record,) = [s for s in manifest["shards"] if s["name"] == shard]
        record.update(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
        self.put_manifest(manifest)

    def put_members(self, shard: str, members: Members) -> None:
        """A shard of these members, which manifest and index vouch for as far as they know them."""
        self.put_tar(shard, tar_of(members))

    def put_tar(self, shard: str, data: bytes) -> None:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            places = {m.name: m for m in tar.getmembers()}
        parts = {"image": self.manifest()["image_suffix"], "mask": MASK_SUFFIX, "meta": META_SUFFIX}
        rows = self.rows()
        for row in rows:
            for part, suffix in parts.items():
                place = places.get(f"{row['key']}.{suffix}") if row["shard"] == shard else None
                if place is not None:
                    row |= {f"{part}_offset": place.offset_data, f"{part}_size": place.size}
        self.put_rows(rows)
        self.put_shard(shard, data)

    def put_member(self, shard: str, name: str, data: bytes, *, new_name: str | None = None) -> None:
        """Another payload, and perhaps name, for one member."""
        replaced = [(new_name or n, data) if n == name else (n, d) for n, d in self.members(shard)]
        self.put_members(shard, replaced)

    def write(self, folder: Path, before: dict[str, bytes] | None = None) -> None:
        """Write the files that differ from those of ``before``, and remove those that are no more."""
        before = before or {}
        for key in before.keys() - self.files.keys():
            (folder / key).unlink()
        for key, data in self.files.items():
            if before.get(key) != data:
                _write(folder / key, data)


@lru_cache(maxsize=4)
def _rows(index: bytes) -> list[Row]:
    rows: list[Row] = pq.ParquetFile(io.BytesIO(index)).read(use_threads=False).to_pylist()
    return rows


def _write(path: Path, data: bytes) -> None:
    """As ``write_bytes``, which some file systems make slow: they flush a file that was emptied first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("r+b" if path.exists() else "xb") as file:
        file.write(data)
        file.truncate()
