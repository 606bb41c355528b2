from typing import Any

import numpy as np
import pytest
from cohorts import voxels
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from bts_dist.counts import (
    Counts,
    count,
    dice,
    iou,
    precision_parts,
    ratio,
    sensitivity_parts,
    specificity_parts,
)

count_arrays = array_shapes(min_dims=0, max_dims=2, max_side=5).flatmap(
    lambda shape: arrays(np.int64, (*shape, 3), elements=voxels)
)


def test_counts_of_two_slices_by_hand() -> None:
    truth = np.array([[[1, 1, 0, 0]], [[0, 0, 0, 0]]], dtype=bool)
    prediction = np.array([[[1, 0, 1, 1]], [[0, 0, 0, 1]]], dtype=bool)
    counts = count(prediction, truth)
    assert counts.dtype == np.int64
    assert counts.tolist() == [[1, 2, 1], [0, 1, 0]]


@given(st.data())
def test_counts_add_up_to_the_masks(data: st.DataObject) -> None:
    shape = data.draw(array_shapes(min_dims=3, max_dims=3, max_side=6))
    prediction, truth = data.draw(arrays(bool, shape)), data.draw(arrays(bool, shape))
    tp, fp, fn = count(prediction, truth).sum(axis=0)
    assert (tp + fp, tp + fn) == (prediction.sum(), truth.sum())
    assert fp + fn == (prediction != truth).sum()
    assert (count(truth, prediction) == count(prediction, truth)[:, [0, 2, 1]]).all()


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        (np.zeros((1, 2, 2), np.uint8), np.zeros((1, 2, 2), bool), "must be bool; got uint8"),
        (np.zeros((1, 2, 2), bool), np.zeros((1, 2, 3), bool), "must share a shape"),
        (np.zeros((2, 2), bool), np.zeros((2, 2), bool), "must share a shape"),
    ],
)
def test_count_refuses_what_is_no_pair_of_masks(prediction: Any, truth: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        count(prediction, truth)


# Ratios


def test_ratios_by_hand() -> None:
    counts = np.array([[3, 1, 2], [0, 4, 0], [0, 0, 0]], dtype=np.int64)
    assert dice(counts).tolist() == [6 / 9, 0.0, 1.0]
    assert iou(counts).tolist() == [3 / 6, 0.0, 1.0]


def test_empty_is_what_the_caller_says() -> None:
    counts = np.array([[0, 0, 0], [1, 0, 0]], dtype=np.int64)
    assert dice(counts, empty=0.25).tolist() == [0.25, 1.0]
    assert np.isnan(iou(counts, empty=float("nan"))).tolist() == [True, False]


@given(count_arrays, st.sampled_from([0.0, 1.0]))
def test_ratios_lie_in_0_1_and_imply_each_other(counts: Counts, empty: float) -> None:
    d, j = dice(counts, empty), iou(counts, empty)
    assert d.shape == j.shape == counts.shape[:-1]
    assert ((d >= 0) & (d <= 1)).all()
    np.testing.assert_allclose(j, d / (2 - d), rtol=0, atol=1e-12)


@given(arrays(bool, array_shapes(min_dims=3, max_dims=3, max_side=6)))
def test_a_perfect_prediction_scores_1(truth: Any) -> None:
    assert (dice(count(truth, truth)) == 1).all()
    assert (iou(count(truth, truth)) == 1).all()


@given(voxels, voxels, voxels)
def test_ratios_do_not_care_which_mask_is_the_truth(tp: int, fp: int, fn: int) -> None:
    one, other = np.array([[tp, fp, fn], [tp, fn, fp]], dtype=np.int64)
    assert dice(one) == dice(other)
    assert iou(one) == iou(other)


def test_rates_by_hand() -> None:
    counts = np.array([3, 1, 2], dtype=np.int64)
    assert ratio(sensitivity_parts(counts)) == 3 / 5
    assert ratio(precision_parts(counts)) == 3 / 4
    assert ratio(specificity_parts(counts, np.array(10))) == 4 / 5


def test_rates_without_their_voxels_are_undefined() -> None:
    nothing, missed, imagined = np.array([[0, 0, 0], [0, 0, 4], [0, 4, 0]], dtype=np.int64)
    assert [ratio(sensitivity_parts(c)) for c in (nothing, missed, imagined)] == [None, 0.0, None]
    assert [ratio(precision_parts(c)) for c in (nothing, missed, imagined)] == [None, None, 0.0]
    assert [ratio(specificity_parts(c, np.array(4))) for c in (nothing, missed, imagined)] == [1.0, None, 0.0]


@given(st.data())
def test_the_swap_of_masks_swaps_sensitivity_and_precision(data: st.DataObject) -> None:
    shape = data.draw(array_shapes(min_dims=3, max_dims=3, max_side=5))
    one, other = data.draw(arrays(bool, shape)), data.draw(arrays(bool, shape))
    there, back = count(one, other).sum(axis=0), count(other, one).sum(axis=0)
    assert ratio(sensitivity_parts(there)) == ratio(precision_parts(back))
    outside = ratio(specificity_parts(there, np.array(one.size)))
    assert outside == ratio(sensitivity_parts(count(~one, ~other).sum(axis=0)))
