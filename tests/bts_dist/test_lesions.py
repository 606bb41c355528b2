import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from bts_dist.counts import Mask, dice
from bts_dist.lesions import count_lesions


def row(*where: int) -> Mask:
    """One slice with one row of twelve pixels, set at the given columns."""
    mask = np.zeros((1, 1, 12), dtype=bool)
    mask[0, 0, list(where)] = True
    return mask


@pytest.mark.parametrize(
    ("prediction", "truth", "found", "imagined", "missed"),
    [
        (row(), row(), 0, 0, 0),
        (row(1, 2), row(), 0, 1, 0),
        (row(), row(1, 2, 5), 0, 0, 2),
        (row(4), row(1, 2, 3, 4), 1, 0, 0),  # a voxel is enough
        (row(1, 4), row(1, 2, 3, 4), 1, 0, 0),  # in two pieces, and both are right
        (row(1, 2, 3), row(1, 3), 2, 0, 0),  # one that joins two
        (row(5, 8, 9), row(1, 2, 6), 0, 2, 2),  # beside it is not on it
    ],
)
def test_lesions_by_hand(prediction: Mask, truth: Mask, found: int, imagined: int, missed: int) -> None:
    counts = count_lesions(prediction, truth)
    assert counts.dtype == np.int64
    assert counts.tolist() == [found, imagined, missed]


def test_corners_join_across_slices() -> None:
    truth = np.zeros((3, 4, 4), dtype=bool)
    truth[0, 0, 0] = truth[1, 1, 1] = True
    assert count_lesions(np.zeros_like(truth), truth).tolist() == [0, 0, 1]
    truth[1, 1, 1], truth[2, 2, 2] = False, True
    assert count_lesions(np.zeros_like(truth), truth).tolist() == [0, 0, 2]


@settings(max_examples=40)
@given(st.data())
def test_lesions_add_up_and_a_perfect_prediction_finds_all(data: st.DataObject) -> None:
    shape = data.draw(array_shapes(min_dims=3, max_dims=3, max_side=6))
    prediction, truth = data.draw(arrays(bool, shape)), data.draw(arrays(bool, shape))
    found, imagined, missed = count_lesions(prediction, truth).tolist()
    alone, *_ = count_lesions(truth, truth).tolist()
    assert found + missed == alone
    assert min(found, imagined, missed) >= 0
    assert count_lesions(truth, truth).tolist() == [alone, 0, 0]
    assert 0 <= dice(count_lesions(prediction, truth)) <= 1
    # Seen the other way round, what was imagined is missed.
    assert count_lesions(truth, prediction)[2] == imagined


@settings(max_examples=40)
@given(st.data())
def test_empty_space_around_changes_nothing(data: st.DataObject) -> None:
    shape = data.draw(array_shapes(min_dims=3, max_dims=3, max_side=5))
    prediction, truth = data.draw(arrays(bool, shape)), data.draw(arrays(bool, shape))
    margins = [(data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))) for _ in shape]
    padded = count_lesions(np.pad(prediction, margins), np.pad(truth, margins))
    assert (padded == count_lesions(prediction, truth)).all()
