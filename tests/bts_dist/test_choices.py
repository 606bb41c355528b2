"""Choices on validation patients: the ways that are counted, and which of them is taken for which gain."""

import numpy as np
import pytest
import torch

from bts_dist.choices import LEAST_GAIN, Axes, count_ways, decide, make_axes
from bts_dist.components import keep_components
from bts_dist.config import ScoreConfig
from bts_dist.counts import Counts, count
from bts_dist.estimates import draw

TRUTH = np.random.default_rng(5).random((3, 8, 8)) < 0.2


def logits(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((2, 3, 8, 8), generator=generator) + torch.from_numpy(TRUTH).float()


def counts_of(dices: np.ndarray) -> list[Counts]:
    """Counts (mirror, ensemble, threshold, components, 3) of patients whose Dice is as given, in 1/1000."""
    tp = np.round(dices * 1000).astype(np.int64)
    return list(np.stack([tp, 2 * (1000 - tp), np.zeros_like(tp)], axis=-1))


def table(shape: tuple[int, ...], **better: tuple[tuple[int, ...], float]) -> np.ndarray:
    """Dice of four patients, 0.5 in each way but those that are named."""
    found = np.full((4, *shape), 0.5)
    for place, dice in better.values():
        found[(slice(None), *place)] = dice
    return found


def test_the_axes_begin_where_nothing_is_done() -> None:
    axes = make_axes(ScoreConfig(), 3, 0.7)
    assert (axes.mirror[0], axes.ensemble, axes.threshold[:3], axes.components[0]) == (
        False,
        (1, 2, 3),
        (0.5, 0.4, 0.6),
        "all",
    )
    assert sorted(axes.threshold) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def test_what_is_not_to_be_chosen_stays_as_validation_had_it() -> None:
    axes = make_axes(ScoreConfig(choices=(), mirror=True), 3, 0.7)
    assert axes == Axes((True,), (1,), (0.7,), ("all",))
    found, tried, members = decide(counts_of(table(axes.shape)), axes, draw(4, 100, 0))
    assert (found.mirror, found.threshold, found.keep, members) == (True, 0.7, "all", 1)
    assert tried["rows"] == []
    assert tried["dice/patient"] == tried["start"]["dice/patient"] == 0.5


def test_every_way_is_counted_as_it_would_be_done() -> None:
    axes = Axes((False, True), (1, 2), (0.5, 0.3), ("all", 3, "largest"))
    members = [logits(1), logits(2)]
    found = count_ways(members, TRUTH, axes)
    assert found.shape == (2, 2, 2, 3, 3)
    for m, mirror in enumerate(axes.mirror):
        for k, num in enumerate(axes.ensemble):
            mean = torch.stack(members[:num]).mean(dim=0).sigmoid()
            probability = (mean.mean(dim=0) if mirror else mean[0]).numpy()
            for t, threshold in enumerate(axes.threshold):
                for c, keep in enumerate(axes.components):
                    mask = keep_components(probability > threshold, keep)
                    assert np.array_equal(found[m, k, t, c], count(mask, TRUTH).sum(axis=0))


def test_only_the_straight_slice_is_needed_where_none_is_mirrored() -> None:
    axes = Axes((False,), (1,), (0.5,), ("all",))
    both, one = count_ways([logits(1)], TRUTH, axes), count_ways([logits(1)[:1]], TRUTH, axes)
    assert np.array_equal(both, one)


def test_each_choice_builds_on_those_before_it() -> None:
    axes = Axes((False, True), (1, 2), (0.5, 0.4), ("all", 10))
    dices = table(
        axes.shape,
        mirrored=((1, 0, 0, 0), 0.6),
        averaged=((1, 1, 0, 0), 0.7),
        lower=((1, 1, 1, 0), 0.75),
        dropped=((1, 1, 1, 1), 0.8),
    )
    found, tried, members = decide(counts_of(dices), axes, draw(4, 100, 0))
    assert (found.mirror, members, found.threshold, found.keep) == (True, 2, 0.4, 10)
    assert [row["choice"] for row in tried["rows"]] == ["mirror", "ensemble", "threshold", "components"]
    assert [round(row["gain"], 6) for row in tried["rows"]] == [0.1, 0.1, 0.05, 0.05]
    assert all(row["taken"] for row in tried["rows"])
    assert tried["dice/patient"] == pytest.approx(0.8)
    assert tried["rows"][3]["tried"] == {"all": pytest.approx(0.75), "10 voxels or more": pytest.approx(0.8)}


def test_a_way_that_is_best_on_another_path_is_not_found_by_chance() -> None:
    axes = Axes((False, True), (1,), (0.5, 0.4), ("all",))
    dices = table(axes.shape, worse=((1, 0, 0, 0), 0.4), far=((1, 0, 1, 0), 0.9))
    found, tried, _ = decide(counts_of(dices), axes, draw(4, 100, 0))
    assert (found.mirror, found.threshold) == (False, 0.5)
    assert tried["rows"][0]["gain"] == pytest.approx(-0.1)
    assert not tried["rows"][0]["taken"]


@pytest.mark.parametrize(("gain", "taken"), [(0.0, False), (LEAST_GAIN / 2, False), (LEAST_GAIN, True)])
def test_what_costs_something_has_to_gain_enough(gain: float, taken: bool) -> None:
    axes = Axes((False, True), (1,), (0.5,), ("all",))
    dices = table(axes.shape)
    dices[0, 1] += 4 * gain  # one of the four patients
    found, tried, _ = decide(counts_of(dices), axes, draw(4, 100, 0))
    assert found.mirror is tried["rows"][0]["taken"] is taken
    assert tried["rows"][0]["gain"] == pytest.approx(gain)
    assert tried["rows"][0]["low"] <= gain <= tried["rows"][0]["high"]


def test_of_few_patients_there_is_no_interval() -> None:
    axes = Axes((False, True), (1,), (0.5,), ("all",))
    _, tried, _ = decide(counts_of(table(axes.shape)[:3]), axes, draw(3, 100, 0))
    assert (tried["rows"][0]["low"], tried["rows"][0]["high"]) == (None, None)


def test_a_threshold_is_free() -> None:
    axes = Axes((False,), (1,), (0.5, 0.4, 0.6), ("all",))
    dices = table(axes.shape)
    dices[0, :, :, 1] += 0.001
    dices[0, :, :, 2] += 0.001
    found, tried, _ = decide(counts_of(dices), axes, draw(4, 100, 0))
    assert found.threshold == 0.4  # of equals the one preferred
    assert tried["rows"][0]["gain"] == pytest.approx(0.00025)
