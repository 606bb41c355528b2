"""One Ray cluster and one packed phantom for all tests of the cluster package."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bts_dist.compose import load_config
from bts_dist.config import ClusterConfig, Config
from cluster.resources import ray_cluster
from shards.config import PhantomConfig
from shards.pack import pack, process_map
from shards.phantom import generate
from shards.verify import verify_source

TINY = [
    "data.image_size=32",
    "model.features=4",
    "model.depth=3",
    "model.norm=group",
    "train.epochs=2",
    "train.global_batch=8",
    "train.precision=fp32",
    "optim.lr=5e-3",
    "pack.samples_per_shard=16",
    "split.train=0.6",
    "split.val=0.2",
    "split.test=0.2",
    "score.bootstrap=100",
    "track.wandb=disabled",
]


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw phantom of ten patients."""
    folder = tmp_path_factory.mktemp("raw") / "phantom"
    generate(PhantomConfig(patients=10, size=32, min_slices=4, max_slices=6), folder, workers=1)
    return folder


@pytest.fixture(scope="session")
def packed(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom, packed without Ray."""
    dest = tmp_path_factory.mktemp("packed") / "shards"
    config = tiny_config(phantom, dest, dest)
    report = verify_source(str(phantom), config.store, 1)
    pack(
        report,
        str(dest),
        source=str(phantom),
        split=config.split,
        config=config.pack,
        store=config.store,
        parallel=process_map(1),
    )
    return dest


@pytest.fixture
def config(phantom: Path, packed: Path, tmp_path: Path) -> Config:
    """A config that trains in seconds, with its run below ``tmp_path``."""
    return tiny_config(phantom, packed, tmp_path / "runs")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray cluster on this machine; stages find it running and leave it so."""
    with ray_cluster(ClusterConfig(workers=2)):
        yield


def tiny_config(source: Path, shards: Path, runs: Path, *sets: str) -> Config:
    places = [f"data.source={source}", f"data.shards={shards}", f"run.dir={runs}", "run.name=test"]
    return load_config([], [*TINY, *places, *sets])
