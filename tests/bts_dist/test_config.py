"""The config's own checks, and what every key owes its reader."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from bts_dist import config as sections
from bts_dist.compose import load_config
from bts_dist.config import ClusterConfig, Config, TrainConfig
from shards.errors import InputError

CONFIGS = Path(__file__).parents[2] / "configs"
PRESETS = sorted({*CONFIGS.glob("*.yaml")} - {CONFIGS / "prices.yaml"})


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from models(field.annotation)
    for inner in get_args(annotation):
        yield from models(inner)


def test_every_section_is_frozen_and_refuses_keys_it_does_not_know() -> None:
    found = set(models(Config))
    assert {"OptimConfig", "PlateauSchedule", "DataConfig", "NoSplit"} <= {model.__name__ for model in found}
    for model in found:
        assert model.model_config["frozen"], model
        assert model.model_config["extra"] == "forbid", model


def test_variants_are_told_apart_by_a_kind_that_is_their_default() -> None:
    schedules = [cls for name, cls in vars(sections).items() if name.endswith("Schedule")]
    kinds = [cls.model_fields["kind"].default for cls in schedules]
    assert sorted(kinds) == ["constant", "cosine", "one_cycle", "plateau", "polynomial", "step"]


def test_a_section_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TrainConfig().epochs = 3  # type: ignore[misc]


def test_the_native_size_and_fitting_sizes_are_taken() -> None:
    assert Config().data.image_size is None
    assert load_config(sets=["data.image_size=96", "model.depth=6"]).data.image_size == 96


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.name)
def test_the_shipped_configs_load_alone_or_over_a_recipe(path: Path) -> None:
    assert load_config([path]) != Config()
    assert not re.search(r"/(home|root|tmp)/", path.read_text())


def test_workers_are_a_number_or_a_range() -> None:
    fixed, elastic = ClusterConfig(workers=3), load_config([], ["cluster.workers=[2, 5]"]).cluster
    assert (fixed.fewest, fixed.most) == (3, 3)
    assert (elastic.fewest, elastic.most) == (2, 5)


@pytest.mark.parametrize("workers", ["0", "[0, 2]", "[3, 2]", "[1, 2, 3]", "many"])
def test_impossible_numbers_of_workers_are_refused(workers: str) -> None:
    with pytest.raises(InputError, match=r"cluster\.workers"):
        load_config([], [f"cluster.workers={workers}"])


def test_the_global_batch_must_do_for_the_most_workers() -> None:
    with pytest.raises(InputError, match="for 20 workers"):
        load_config([], ["cluster.workers=[1, 20]", "train.global_batch=16"])


def test_a_worker_has_whole_gpus_or_a_part_of_one() -> None:
    for gpus in ("0", "0.25", "1", "2"):
        assert load_config([], [f"cluster.gpus_per_worker={gpus}"]).cluster.gpus_per_worker == float(gpus)
    with pytest.raises(InputError, match=r"above 1 must be a whole number; found 1\.5"):
        load_config([], ["cluster.gpus_per_worker=1.5"])
