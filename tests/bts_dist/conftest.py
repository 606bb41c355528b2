"""A small packed phantom data set, and a config that trains on it in about a second."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for the modules beside this file

from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.runtime import LocalRuntime
from bts_dist.train import train
from shards.config import (
    HoldoutSplit,
    NoSplit,
    PackConfig,
    PhantomConfig,
    SliceSplit,
    SplitConfig,
    StoreConfig,
)
from shards.pack import pack, process_map
from shards.phantom import generate
from shards.store import LocalStore
from shards.verify import verify_source

Task, Done = TypeVar("Task"), TypeVar("Done")

PATIENTS = PhantomConfig(patients=10, size=32, min_slices=4, max_slices=6, seed=4)


def backwards(work: Callable[[Task], Done], given: Sequence[Task]) -> Iterator[Done]:
    """Tasks done one after another, the last one first."""
    return map(work, reversed(given))


def pack_phantom(folder: Path, phantom: PhantomConfig, split: SplitConfig, study: str) -> Path:
    """Generate and pack a phantom data set whose patients bear the name of a study; the folder of its shards."""
    source, shards = folder / "source", folder / "shards"
    generate(phantom, source, workers=1)
    for path in sorted(source.rglob("*"), reverse=True):
        path.rename(path.with_name(path.name.replace("PHANTOM", study)))
    return pack_source(source, shards, split)


def pack_source(source: Path, shards: Path, split: SplitConfig) -> Path:
    pack(
        verify_source(str(source), StoreConfig(), 1),
        str(shards),
        source=str(source),
        split=split,
        config=PackConfig(samples_per_shard=4),
        store=StoreConfig(),
        parallel=process_map(1),
    )
    return shards


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten patients: six to train on, two to validate, two to test."""
    split = HoldoutSplit(train=0.6, val=0.2, test=0.2)
    return pack_phantom(tmp_path_factory.mktemp("phantom"), PATIENTS, split, "HOME")


@pytest.fixture(scope="session")
def everyone(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same ten patients, all of them to test."""
    return pack_source(packed.parent / "source", tmp_path_factory.mktemp("everyone") / "shards", NoSplit())


@pytest.fixture(scope="session")
def by_slice(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same ten patients, their slices in training, validation and test at random."""
    split = SliceSplit(train=0.6, val=0.2, test=0.2)
    return pack_source(packed.parent / "source", tmp_path_factory.mktemp("by-slice") / "shards", split)


@pytest.fixture(scope="session")
def external(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three other patients, all of them to test."""
    others = PATIENTS.model_copy(update={"patients": 3, "seed": 11})
    return pack_phantom(tmp_path_factory.mktemp("external"), others, NoSplit(), "AWAY")


@pytest.fixture(scope="session")
def config(packed: Path) -> Config:
    """Trains a tiny UNet for two epochs, everything exact: float32, group norm, one thread."""
    return with_overrides(
        Config(),
        {
            "data.shards": str(packed),
            "data.window_shards": 2,
            "data.decode_threads": 1,
            "model.features": 4,
            "model.depth": 2,
            "model.norm": "group",
            "optim.kind": "adamw",
            "optim.lr": 1e-2,
            "optim.ema": 0.9,
            "schedule.warmup_epochs": 0,
            "train.epochs": 2,
            "train.global_batch": 4,
            "train.precision": "fp32",
            "train.threads": 1,
            "train.log_every": 1,
            "score.bootstrap": 100,
            "track.wandb": "disabled",
            "cluster.workers": 1,
            "run.name": "run",
        },
    )


@pytest.fixture
def run(tmp_path: Path) -> LocalStore:
    """An empty run."""
    return LocalStore(str(tmp_path / "runs" / "run"), tmp_path / "runs" / "run")


@pytest.fixture(scope="session")
def trained_run(config: Config, tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    """A run of two epochs on the phantom; both of its checkpoints are kept."""
    root = tmp_path_factory.mktemp("trained") / "run"
    run = LocalStore(str(root), root)
    train(config, LocalRuntime(0, 1, 0, torch.device("cpu")), run, root)
    return run


@pytest.fixture
def own(trained_run: LocalStore, tmp_path: Path) -> LocalStore:
    """A copy of the trained run that a test may spoil."""
    root = tmp_path / "own"
    for entry in trained_run.list("checkpoints/"):
        LocalStore("", root).put(entry.key, trained_run.get(entry.key))
    return LocalStore(str(root), root)


@pytest.fixture
def runtime(run: LocalStore, tmp_path: Path) -> LocalRuntime:
    """The one process of a run, on the CPU."""
    return LocalRuntime(0, 1, 0, torch.device("cpu"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Threads only get in each other's way on tensors this small, most of all on a busy machine."""
    torch.set_num_threads(1)
