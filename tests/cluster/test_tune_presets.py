"""The searches of the presets are possible."""

from pathlib import Path

import pytest

from bts_dist.compose import load_config
from cluster.tune_search import make_searcher

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("names", [["demo"], ["lgg-cpu"], ["lgg", "tune"], ["demo", "tune"], ["tune"]])
def test_the_searches_of_the_presets_are_possible(names: list[str]) -> None:
    config = load_config([CONFIGS / f"{name}.yaml" for name in names])
    assert config.tune.trials
    make_searcher(config)
