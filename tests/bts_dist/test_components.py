"""Components of a mask: what is kept, and that counting every option gives what doing each would."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.morphology import remove_small_objects

from bts_dist.components import OPTIONS, Keep, count_components, keep_components
from bts_dist.counts import Mask, count


def noise(seed: int, share: float) -> Mask:
    return np.random.default_rng(seed).random((4, 12, 11)) < share


def two_and_one() -> Mask:
    """Three components: 12 voxels in two slices, 4 voxels that touch nothing, and 1 at a corner."""
    mask = np.zeros((3, 10, 10), dtype=bool)
    mask[0, 1:3, 1:4] = mask[1, 1:3, 1:4] = True
    mask[2, 6:8, 6:8] = True
    mask[0, 9, 9] = True
    return mask


@pytest.mark.parametrize(
    ("keep", "voxels"), [("all", 17), (1, 17), (2, 16), (4, 16), (5, 12), (12, 12), (13, 0), ("largest", 12)]
)
def test_what_each_option_keeps(keep: Keep, voxels: int) -> None:
    kept = keep_components(two_and_one(), keep)
    assert kept.dtype == np.bool_
    assert np.count_nonzero(kept) == voxels
    assert not (kept & ~two_and_one()).any()


def test_slices_that_touch_by_a_corner_are_one_component() -> None:
    mask = np.zeros((2, 4, 4), dtype=bool)
    mask[0, 1, 1] = mask[1, 2, 2] = True
    assert np.count_nonzero(keep_components(mask, 2)) == 2


@pytest.mark.parametrize("keep", OPTIONS)
def test_an_empty_mask_stays_empty(keep: Keep) -> None:
    assert not keep_components(np.zeros((2, 5, 5), dtype=bool), keep).any()


@given(st.integers(0, 1000), st.floats(0, 0.4), st.integers(1, 40))
def test_small_components_go_as_scikit_image_lets_them_go(seed: int, share: float, fewest: int) -> None:
    mask = noise(seed, share)
    wanted = remove_small_objects(mask, max_size=fewest - 1, connectivity=3)
    assert np.array_equal(keep_components(mask, fewest), wanted)


@given(st.integers(0, 1000), st.floats(0, 0.5), st.floats(0, 0.5))
def test_counting_the_options_is_counting_each_mask(seed: int, predicted: float, true: float) -> None:
    prediction, truth = noise(seed, predicted), noise(seed + 1, true)
    options: tuple[Keep, ...] = ("all", 3, 20, "largest")
    wanted = [count(keep_components(prediction, keep), truth).sum(axis=0) for keep in options]
    found = count_components(prediction, truth, options)
    assert found.dtype == np.int64
    assert np.array_equal(found, np.stack(wanted))
