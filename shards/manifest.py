"""What a packed data set says of itself: ``manifest.json`` and ``index.parquet``.

Both are checked whole when they are loaded, so nothing odd that they say is ever asked of a store.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, ValidationError, model_validator

from shards.config import PackConfig, Section, SplitConfig
from shards.encode import IMAGE_SUFFIX
from shards.errors import InputError
from shards.plan import SPLITS, Split
from shards.rows import INDEX_SCHEMA as INDEX_SCHEMA
from shards.rows import check_rows
from shards.store import MissingObject, ObjectStore
from shards.strict_json import parse

FORMAT: Literal["bts-shards/1"] = "bts-shards/1"
MANIFEST = "manifest.json"
INDEX = "index.parquet"
SHARDS = "shards/"

_SEAL = "manifest_sha256"
_REMEDY = "copy it again, or pack the data again"

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
PatientName = Annotated[str, Field(pattern="^[A-Za-z0-9_+-][A-Za-z0-9_+ -]{0,63}$")]
Side = Annotated[int, Field(ge=1, le=16384)]


class ShardRecord(Section):
    name: str = Field(pattern=r"^shards/(train|val|test)-[0-9]{6}\.tar$")
    split: Split
    samples: int = Field(ge=1, le=1 << 32)
    bytes: int = Field(ge=1, le=1 << 40)
    sha256: Sha256

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.name.startswith(f"{SHARDS}{self.split}-"):
            raise ValueError(f"{self.name} is said to be of split {self.split}")
        return self


class Provenance(Section):
    """Where the data set came from: enough to make it again and to tell it from another."""

    source: str
    source_fingerprint: Sha256
    """Over every source file's name and bytes."""
    pack: PackConfig
    split: SplitConfig


class Manifest(Section):
    """The root of a packed data set.  Without it there is no data set."""

    format: Literal["bts-shards/1"] = FORMAT
    data_id: str = Field(pattern="^[0-9a-f]{16}$")
    """Names the content: equal for equal source, split and packing."""
    height: Side
    width: Side
    image_suffix: str
    patients: dict[Split, list[PatientName]]
    shards: list[ShardRecord] = Field(min_length=1)
    """Numbered from 0 in each split, in the order of ``SPLITS``."""
    index_sha256: str = Field(pattern="^([0-9a-f]{64})?$")
    """Empty while the index is not yet written."""
    provenance: Provenance

    @model_validator(mode="after")
    def _check_patients(self) -> Self:
        if set(self.patients) != set(SPLITS):
            raise ValueError(
                f"patients are listed for {', '.join(self.patients)}, not for {', '.join(SPLITS)}"
            )
        lists = [self.patients[split] for split in SPLITS]
        # Under any other split a patient has one place; where slices are split, one in each list.
        for listed in lists if self.splits_patients else [[p for own in lists for p in own]]:
            for patient, count in Counter(listed).most_common(1):
                if count > 1:
                    raise ValueError(f"patient {patient} is listed {count} times")
        return self

    @model_validator(mode="after")
    def _check_shards(self) -> Self:
        counts = Counter(shard.split for shard in self.shards)
        right = [f"{SHARDS}{split}-{n:06d}.tar" for split in SPLITS for n in range(counts[split])]
        for shard, name in zip(self.shards, right, strict=True):
            if shard.name != name:
                raise ValueError(f"{shard.name} stands where {name} has to stand")
        return self

    @model_validator(mode="after")
    def _check_suffix(self) -> Self:
        encoding = self.provenance.pack.encoding
        if self.image_suffix != IMAGE_SUFFIX[encoding]:
            raise ValueError(
                f"image_suffix is {self.image_suffix!r}, that of {encoding} is {IMAGE_SUFFIX[encoding]}"
            )
        return self

    @property
    def splits_patients(self) -> bool:
        """Whether slices of one patient are in several splits: such a set leaks, and its scores are no results."""
        return self.provenance.split.kind == "slice"

    def num_samples(self, split: Split | None = None) -> int:
        return sum(s.samples for s in self.shards if split in (None, s.split))


def find_manifest(store: ObjectStore) -> Manifest | None:
    """The manifest of the data set at ``store``, or None when there is none.

    Raises:
        InputError: there is one that is damaged, contradicts itself, or is not for this version.
    """
    try:
        data = store.get(MANIFEST)
    except MissingObject:
        return None
    where = f"{store.uri}/{MANIFEST}"
    try:
        fields = parse(data)
        seal = fields.pop(_SEAL, None) if isinstance(fields, dict) else None
        manifest = Manifest.model_validate(fields, strict=True)
    except ValidationError as error:
        raise InputError(
            f"{where} is not a {FORMAT} manifest ({_explained(error, fields)}); {_REMEDY}"
        ) from error
    except ValueError as error:
        raise InputError(f"{where} is not a {FORMAT} manifest (whole file: {error}); {_REMEDY}") from error
    # Data sets packed before there was a seal have none.
    if seal is not None and data != _sealed(fields):
        raise InputError(f"{where} is not as it was written: its {_SEAL} does not fit; {_REMEDY}")
    return manifest


def load_manifest(store: ObjectStore) -> Manifest:
    """As ``find_manifest``, but absence is an ``InputError`` too."""
    manifest = find_manifest(store)
    if manifest is None:
        raise InputError(f"{store.uri} holds no packed data set (no {MANIFEST}); run `bts pack` first")
    return manifest


def dump_manifest(manifest: Manifest) -> bytes:
    """The file's bytes, among them the sha256 of what they are without it: any change of the file shows."""
    return _sealed(manifest.model_dump(mode="json"))


def _sealed(fields: dict[str, Any]) -> bytes:
    seal = hashlib.sha256(_dumped(fields)).hexdigest()
    return _dumped(fields | {_SEAL: seal})


def _dumped(fields: dict[str, Any]) -> bytes:
    return (json.dumps(fields, indent=1, sort_keys=True) + "\n").encode()


def _explained(error: ValidationError, fields: Any) -> str:
    """The first fault: which field, of which shard, what is wrong and what was found."""
    first = error.errors()[0]
    place, found = first["loc"], first["input"]
    where = ".".join(map(str, place)) or "whole file"
    if place[:1] == ("shards",) and len(place) > 2:
        name = fields["shards"][place[1]].get("name")
        where += f" of {_shown(name)}"
    what = first["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" + ("" if isinstance(found, dict) else f", found {_shown(found)}")


def _shown(value: object) -> str:
    """A value of any origin for a message."""
    if isinstance(value, list | dict):
        return f"a {type(value).__name__}"
    return repr(value)[:80]


def dump_index(rows: Sequence[dict[str, Any]]) -> bytes:
    """Rows of ``INDEX_SCHEMA`` as a Parquet file."""
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=INDEX_SCHEMA), out, compression="zstd")
    return out.getvalue()


def load_index(store: ObjectStore, manifest: Manifest) -> pa.Table:
    """The index, checked row by row against itself and the manifest.

    Raises:
        InputError: it is missing, is not the one the manifest names, or a row cannot be true.
    """
    where = f"{store.uri}/{INDEX}"
    try:
        data = store.get(INDEX)
    except MissingObject as error:
        raise InputError(f"{where} is missing; {_REMEDY}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != manifest.index_sha256:
        raise InputError(
            f"{where} has sha256 {found[:12]}…, the manifest says {manifest.index_sha256[:12]}…; "
            f"it was changed or damaged: {_REMEDY}"
        )
    try:
        table = _read_table(data, manifest.num_samples(), where)
    except (pa.ArrowException, OSError, UnicodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{where} is no readable Parquet file ({reason}); {_REMEDY}") from error
    check_rows(table, manifest, where)
    return table


def _read_table(data: bytes, num_samples: int, where: str) -> pa.Table:
    """The rows, as soon as what the file says of them is right: a few bytes can claim a billion rows."""
    file = pq.ParquetFile(pa.BufferReader(data))
    if not file.schema_arrow.equals(INDEX_SCHEMA):
        raise InputError(f"{where} has other columns than {FORMAT} has; pack the data again")
    if file.metadata.num_rows > 2 * num_samples:
        raise InputError(
            f"{where} has {file.metadata.num_rows} rows, the manifest's shards {num_samples} samples; "
            "pack the data again"
        )
    table = file.read()
    table.validate(full=True)
    return table
