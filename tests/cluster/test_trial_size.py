"""The largest model of a search is told beforehand."""

from typing import Any

import pytest

from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.flops import count_flops
from cluster.trial_size import largest_trial

SIDES = (64, 64)


def config(space: dict[str, Any], **tune: Any) -> Config:
    changes = {"model.features": 4, "model.depth": 3, "tune.space": space, "tune.trials": 4}
    return with_overrides(Config(), {**changes, **{f"tune.{key}": value for key, value in tune.items()}})


@pytest.mark.parametrize("search", ["grid", "random", "optuna"])
def test_the_largest_of_all_that_may_be_tried_counts(search: str) -> None:
    features = config({"model.features": {"choice": [2, 8, 4]}}, search=search)
    largest = with_overrides(features, {"model.features": 8})
    expected = count_flops(largest.model, SIDES) / count_flops(features.model, SIDES)
    assert largest_trial(features, SIDES) == pytest.approx(expected)
    assert expected > 3


def test_slices_may_be_larger_too() -> None:
    size = config({"data.image_size": {"choice": [64, 128]}})
    assert largest_trial(size, SIDES) == pytest.approx(4)


def test_points_count_and_what_cannot_train_does_not() -> None:
    space = {"model.depth": {"choice": [3, 8]}}  # 64 pixels do not divide by 128
    assert largest_trial(config(space, search="grid"), SIDES) == 1
    assert largest_trial(config(space, search="grid", points=[{"model.features": 8}]), SIDES) > 3


def test_a_search_over_other_settings_changes_nothing() -> None:
    assert largest_trial(config({"optim.lr": {"loguniform": [1e-4, 1e-2]}}), SIDES) == 1
