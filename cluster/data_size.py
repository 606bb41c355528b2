"""How large a job's data sets are: slices and bytes of each split, also of folds that are yet to be packed."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from bts_dist.config import Config
from cluster.folds import fold_config, num_folds
from shards.errors import InputError
from shards.manifest import Manifest, find_manifest, load_index
from shards.plan import SPLITS, Split, assign_splits
from shards.rows import numbers
from shards.store import open_store

_BLOCK = 512
"""Of a tar: a member's header takes one, and its payload is filled up to whole ones."""


@dataclass(frozen=True)
class DataSize:
    """One packed data set."""

    slices: Mapping[Split, int]
    bytes: Mapping[Split, int]
    """Of its shards."""
    patients: Mapping[Split, int]


@dataclass(frozen=True)
class Patient:
    """What a split has to know of a patient, as ``shards.plan.Stratum``, and the bytes of its samples in a tar."""

    patient: str
    institution: str
    num_slices: int
    tumour_pixels: tuple[int, ...]
    bytes: int


def size_of(manifest: Manifest) -> DataSize:
    """As the manifest lists it."""
    sizes = {split: sum(s.bytes for s in manifest.shards if s.split == split) for split in SPLITS}
    patients = {split: len(manifest.patients[split]) for split in SPLITS}
    return DataSize({split: manifest.num_samples(split) for split in SPLITS}, sizes, patients)


def fold_sizes(config: Config) -> list[DataSize]:
    """The data set of each fold of ``split.fold=all``.

    A fold that is packed is as its manifest says.  Others are split here as packing will split them, from the patients
    of ``data.shards``; their bytes are then those of their samples, without the ends of the shards.

    Raises:
        InputError: neither they nor ``data.shards`` are packed, or there are too few patients for the folds.
    """
    packed = find_manifest(open_store(config.data.shards, config.store))
    patients: list[Patient] | None = None
    sizes = []
    for fold in range(num_folds(config)):
        own = fold_config(config, fold)
        manifest = find_manifest(open_store(own.data.shards, own.store))
        if manifest is not None:
            sizes.append(size_of(manifest))
            continue
        if packed is None:
            raise InputError(
                f"{own.data.shards} holds no packed data set, which `bts run` makes, nor does {config.data.shards}, "
                "from which the size of the folds would follow; pack it first: bts pack --set split.fold=null"
            )
        if patients is None:
            patients = _patients(load_index(open_store(config.data.shards, config.store), packed))
        sizes.append(_size_of_split(patients, own))
    return sizes


def _size_of_split(patients: list[Patient], config: Config) -> DataSize:
    assert config.split.kind == "patient"
    splits = assign_splits(patients, config.split)
    own = {split: [p for p in patients if splits[p.patient] == split] for split in SPLITS}
    return DataSize(
        {split: sum(p.num_slices for p in own[split]) for split in SPLITS},
        {split: sum(p.bytes for p in own[split]) for split in SPLITS},
        {split: len(own[split]) for split in SPLITS},
    )


def _patients(index: pa.Table) -> list[Patient]:
    """The patients of an index, whichever splits it has."""
    sizes = np.stack([numbers(index[f"{part}_size"]) for part in ("image", "mask", "meta")]).astype(np.int64)
    weights = (_BLOCK * (1 + -(-sizes // _BLOCK))).sum(axis=0)
    pixels = numbers(index["tumour_pixels"])
    names = np.array(index["patient"].to_pylist())
    institutions = index["institution"].to_pylist()
    found = []
    for name in sorted(set(names.tolist())):
        rows = np.flatnonzero(names == name)
        found.append(
            Patient(
                name,
                institutions[rows[0]],
                len(rows),
                tuple(pixels[rows].tolist()),
                int(weights[rows].sum()),
            )
        )
    return found
