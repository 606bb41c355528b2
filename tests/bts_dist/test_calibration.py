import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from bts_dist.calibration import BINS, NEAR_PX, Probabilities, count_by_bin, near, reliability
from bts_dist.counts import Mask
from bts_dist.estimates import draw

PART = 2**24

probabilities = st.sampled_from([0.0, 1 / 15, 0.2, 0.5, 1.0]) | st.floats(0, 1, width=32)


@st.composite
def predictions(draw: st.DrawFn) -> tuple[Probabilities, Mask]:
    size = draw(st.integers(1, 60))
    return draw(arrays(np.float32, size, elements=probabilities)), draw(arrays(bool, size))


def by_definition(probability: Probabilities, truth: Mask) -> tuple[float, float]:
    """Expected calibration error and Brier score, bin by bin and in floating point."""
    p, error = probability.astype(np.float64), 0.0
    for number in range(BINS):
        inside = (p > number / BINS) & (p <= (number + 1) / BINS) | (p == 0) & (number == 0)
        if inside.any():
            error += inside.mean() * abs(truth[inside].mean() - p[inside].mean())
    return error, float(((p - truth) ** 2).mean())


def test_counts_by_hand() -> None:
    counts = count_by_bin(np.array([0.0, 0.25, 0.25, 1.0], np.float32), np.array([0, 0, 1, 1], bool))
    assert counts.dtype == np.int64
    assert counts[0].tolist() == [1, 0, 0, 0]
    assert counts[3].tolist() == [2, 1, PART // 2, PART * 10 // 16]
    assert counts[14].tolist() == [1, 1, PART, 0]
    assert counts.sum(axis=0).tolist() == [4, 2, PART * 3 // 2, PART * 10 // 16]


def test_a_bin_holds_its_upper_end() -> None:
    for number in range(1, BINS):
        edge = np.float32(number / BINS)
        expected = number - 1 if float(edge) <= number / BINS else number
        assert count_by_bin(np.array([edge]), np.array([True]))[expected, 0] == 1


@settings(max_examples=40)
@given(predictions())
def test_agrees_with_the_definition(prediction: tuple[Probabilities, Mask]) -> None:
    found = reliability([count_by_bin(*prediction)], "all", draw(1, 100, 0))
    assert found is not None
    error, brier = by_definition(*prediction)
    assert found["ece"]["mean"] == pytest.approx(error, abs=1e-7)
    assert found["brier"]["mean"] == pytest.approx(brier, abs=1e-7)
    assert sum(bin_["voxels"] for bin_ in found["bins"]) == len(prediction[0])


@settings(max_examples=40)
@given(predictions(), predictions())
def test_counts_add_up_over_patients(
    one: tuple[Probabilities, Mask], other: tuple[Probabilities, Mask]
) -> None:
    together = [np.concatenate(pair) for pair in zip(one, other, strict=True)]
    assert (count_by_bin(*together) == count_by_bin(*one) + count_by_bin(*other)).all()


def test_a_calibrated_model_has_no_error_and_a_certain_wrong_one_the_largest() -> None:
    p = np.repeat(np.array([0.25, 0.75], np.float32), 4)
    right = np.array([1, 0, 0, 0, 1, 1, 1, 0], bool)
    found = reliability([count_by_bin(p, right)], "all", draw(1, 100, 0))
    assert found is not None
    assert found["ece"]["mean"] == 0
    filled = [bin_ for bin_ in found["bins"] if bin_["voxels"]]
    assert [(b["mean_probability"], b["tumour_share"]) for b in filled] == [(0.25, 0.25), (0.75, 0.75)]
    wrong = reliability([count_by_bin(np.ones(3, np.float32), np.zeros(3, bool))], "all", draw(1, 100, 0))
    assert wrong is not None
    assert wrong["ece"]["mean"] == wrong["brier"]["mean"] == 1


def test_intervals_are_over_patients_and_voxels_are_pooled() -> None:
    good = count_by_bin(np.ones(30, np.float32), np.ones(30, bool))
    bad = count_by_bin(np.ones(10, np.float32), np.zeros(10, bool))
    without = np.zeros_like(good)
    found = reliability([good, bad, without], "near", draw(3, 400, 0))
    assert found is not None
    assert found["ece"]["mean"] == found["brier"]["mean"] == 0.25
    assert (found["ece"]["low"], found["ece"]["high"]) == (0.0, 1.0)
    assert found["ece"]["n"] == 2
    assert reliability([without], "near", draw(1, 100, 0)) is None


@settings(max_examples=40)
@given(st.data())
def test_near_is_within_so_many_rows_and_columns_of_the_same_slice(data: st.DataObject) -> None:
    shape = data.draw(array_shapes(min_dims=3, max_dims=3, max_side=16))
    elements = st.sampled_from([False] * 9 + [True])
    prediction, truth = (data.draw(arrays(bool, shape, elements=elements)) for _ in range(2))
    square = np.ones((1, 2 * NEAR_PX + 1, 2 * NEAR_PX + 1), bool)
    assert (near(prediction, truth) == ndimage.binary_dilation(prediction | truth, square)).all()
