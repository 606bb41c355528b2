"""What there is to do follows from config and manifest by arithmetic."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bts_dist.compose import with_overrides
from bts_dist.config import Config
from cluster.workload import Work, plan_work
from shards.manifest import Manifest, load_manifest
from shards.store import open_store


@pytest.fixture(scope="module")
def manifest(packed: Path) -> Manifest:
    return load_manifest(open_store(str(packed)))


def on_s3(**values: object) -> Config:
    changes = {"data.shards": "s3://bucket/set", **{k.replace("__", "."): v for k, v in values.items()}}
    return with_overrides(Config(), changes)


def size(manifest: Manifest, *splits: str) -> int:
    return sum(shard.bytes for shard in manifest.shards if shard.split in splits)


@pytest.mark.parametrize("trials", [0, 4])
def test_each_stage_counts_its_passes(manifest: Manifest, trials: int) -> None:
    work = plan_work(on_s3(train__epochs=7, tune__trials=trials, tune__epochs=3, tune__confirm=2), manifest)
    train, val, test = (manifest.num_samples(split) for split in ("train", "val", "test"))
    found = {part.stage: (part.trained, part.predicted) for part in work}
    expected = {"train": (7 * train, 7 * val), "score": (0, test)}
    if trials:
        expected |= {"tune": (12 * train, 12 * val), "confirm": (28 * train, 28 * val + 4 * test)}
    assert found == expected


def test_shards_are_fetched_once_unless_nothing_keeps_them(manifest: Manifest) -> None:
    once, test = size(manifest, "train", "val"), size(manifest, "test")
    kept = plan_work(on_s3(train__epochs=5), manifest)
    assert [part.bytes for part in kept] == [once, test]
    again = plan_work(on_s3(train__epochs=5, data__cache="none"), manifest)
    assert [part.bytes for part in again] == [5 * once, test]
    full = plan_work(on_s3(train__epochs=5, store__cache_gib=1e-6), manifest)
    assert [part.bytes for part in full] == [5 * once, test]
    local = plan_work(with_overrides(Config(), {"train.epochs": 5}), manifest)
    assert [part.bytes for part in local] == [0, 0]


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0.1, 1e6), st.floats(0.1, 1e6))
def test_twice_as_fast_takes_half_as_long(trained: int, predicted: int, train: float, predict: float) -> None:
    work = Work("train", trained, predicted, 0)
    assert work.seconds(2 * train, 2 * predict) == pytest.approx(work.seconds(train, predict) / 2)
    assert work.seconds(train, predict) * train >= trained
