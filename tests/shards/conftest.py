"""A raw phantom and its packed data set, made once for the tests of the package."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards.config import HoldoutSplit, PackConfig, PhantomConfig, StoreConfig
from shards.manifest import Manifest
from shards.pack import pack
from shards.phantom import generate
from shards.verify import SourceReport, verify_source

PackTo = Callable[..., Manifest]


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six patients of three to five slices of 32 by 32 pixels."""
    folder = tmp_path_factory.mktemp("raw") / "phantom"
    generate(PhantomConfig(patients=6, size=32, min_slices=3, max_slices=5), folder, workers=1)
    return folder


@pytest.fixture(scope="session")
def report(phantom: Path) -> SourceReport:
    return verify_source(str(phantom), StoreConfig(), workers=1)


@pytest.fixture(scope="session")
def pack_to(phantom: Path, report: SourceReport) -> PackTo:
    """Packs the phantom to a place: ``pack_to(dest, encoding="webp")``, in shards of five samples."""

    def run(dest: Path | str, **settings: Any) -> Manifest:
        given = {
            name: settings.pop(name)
            for name in ("report", "source", "split", "store", "progress")
            if name in settings
        }
        config = PackConfig(**{"samples_per_shard": 5, "workers": 1} | settings)
        defaults = {"report": report, "source": str(phantom), "split": HoldoutSplit(), "store": StoreConfig()}
        return pack(dest=str(dest), config=config, **defaults | given)

    return run


@pytest.fixture(scope="session")
def packed(pack_to: PackTo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packed phantom; a test that changes it makes a copy."""
    dest = tmp_path_factory.mktemp("packed") / "data"
    pack_to(dest)
    return dest
