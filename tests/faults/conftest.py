"""A small packed phantom for all fault tests."""

from pathlib import Path

import pytest

from shards.config import HoldoutSplit, PackConfig, PhantomConfig, StoreConfig
from shards.pack import pack, process_map
from shards.phantom import generate
from shards.verify import verify_source

PHANTOM = PhantomConfig(patients=10, size=32, min_slices=4, max_slices=6, seed=4)


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 slices of six patients to train on, two patients to validate."""
    folder = tmp_path_factory.mktemp("phantom")
    source, shards = folder / "source", folder / "shards"
    generate(PHANTOM, source, workers=1)
    pack(
        verify_source(str(source), StoreConfig(), 1),
        str(shards),
        source=str(source),
        split=HoldoutSplit(train=0.6, val=0.2, test=0.2),
        config=PackConfig(samples_per_shard=4),
        store=StoreConfig(),
        parallel=process_map(1),
    )
    return shards
