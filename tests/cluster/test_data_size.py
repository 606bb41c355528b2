"""Folds that are not packed yet have the sizes that packing gives them."""

from pathlib import Path

import pytest

from bts_dist.compose import with_overrides
from bts_dist.config import Config
from cluster.data_size import fold_sizes, size_of
from cluster.folds import fold_config
from cluster.pack_job import run_pack
from shards.errors import InputError
from shards.manifest import load_manifest
from shards.plan import SPLITS
from shards.store import open_store
from shards.verify import verify_source

END = 2 * 512
"""Bytes that end a shard."""


def test_folds_are_as_packing_makes_them(config: Config, phantom: Path, packed: Path, tmp_path: Path) -> None:
    (tmp_path / "set").symlink_to(packed)
    config = with_overrides(
        config,
        {
            "cluster.runtime": "local",
            "pack.workers": 1,
            "split.fold": "all",
            "split.folds": 4,
            "data.shards": str(tmp_path / "set"),
        },
    )
    planned = fold_sizes(config)
    assert len(planned) == 4
    report = verify_source(str(phantom), config.store, 1)
    manifests = [run_pack(fold_config(config, fold), report) for fold in range(4)]
    for size, manifest in zip(planned, manifests, strict=True):
        assert size.slices == size_of(manifest).slices
        ends = {split: END * sum(s.split == split for s in manifest.shards) for split in SPLITS}
        assert {split: size.bytes[split] + ends[split] for split in SPLITS} == size_of(manifest).bytes
    # The tests of all folds are all slices.
    assert (
        sum(size.slices["test"] for size in planned) == load_manifest(open_store(str(packed))).num_samples()
    )
    (tmp_path / "set").unlink()
    assert fold_sizes(config) == [size_of(manifest) for manifest in manifests]


def test_without_any_data_set_it_says_what_to_pack(config: Config, tmp_path: Path) -> None:
    config = with_overrides(config, {"split.fold": "all", "data.shards": str(tmp_path / "none")})
    with pytest.raises(
        InputError, match=r"none-fold-0-of-5 holds no packed data set.*bts pack --set split.fold=null"
    ):
        fold_sizes(config)
