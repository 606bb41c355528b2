import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from bts_dist.counts import count, dice
from bts_dist.thresholds import CURVE, best_threshold, count_at, curve


def test_threshold_has_the_highest_mean_dice_per_patient() -> None:
    large = np.array([[500, 400, 100], [550, 100, 50], [400, 0, 200]], dtype=np.int64)
    small = np.array([[9, 1, 1], [5, 0, 5], [1, 0, 9]], dtype=np.int64)
    threshold, mean = best_threshold([large, small], [0.3, 0.5, 0.7])
    # the small patient weighs as much as the large one; pooled counts would choose 0.5
    assert threshold == 0.3
    assert mean == pytest.approx((1000 / 1500 + 18 / 20) / 2)


@pytest.mark.parametrize(
    ("thresholds", "chosen"),
    [([0.1, 0.2, 0.45, 0.9], 0.45), ([0.9, 0.6, 0.8, 0.3], 0.6), ([0.7, 0.6, 0.4, 0.2], 0.4)],
)
def test_of_equal_thresholds_the_one_nearest_a_half_wins(thresholds: list[float], chosen: float) -> None:
    flat = np.tile(np.array([3, 1, 1], dtype=np.int64), (4, 1))
    assert best_threshold([flat, flat], thresholds) == (chosen, 0.75)


def test_equality_of_thresholds_survives_rounding() -> None:
    low, middle, high = np.array([[1, 9, 0], [2, 8, 0], [3, 7, 0]], dtype=np.int64)
    patients = [np.stack(pair) for pair in ((low, low), (middle, high), (high, middle))]
    means = dice(np.stack(patients)).mean(axis=0)
    assert means[0] != means[1]  # sums of the same three numbers, in another order
    assert best_threshold(patients, [0.5, 0.9])[0] == 0.5
    assert best_threshold(patients, [0.9, 0.5])[0] == 0.5


def test_threshold_refuses_counts_that_do_not_fit() -> None:
    for counts, thresholds in (([], [0.5]), ([np.zeros((2, 3), np.int64)], [0.5]), ([], [])):
        with pytest.raises(ValueError, match="expected counts of shape"):
            best_threshold(counts, thresholds)


# The curve

probabilities = st.sampled_from([0.0, 0.05, 0.25, 0.3, 0.5, 0.95, 1.0]) | st.floats(0, 1, width=32)


@given(st.data())
def test_all_thresholds_at_once_count_like_each_of_them(data: st.DataObject) -> None:
    shape = data.draw(array_shapes(min_dims=3, max_dims=3, max_side=5))
    probability = data.draw(arrays(np.float32, shape, elements=probabilities))
    truth = data.draw(arrays(bool, shape))
    one_by_one = [count(probability > threshold, truth).sum(axis=0) for threshold in CURVE]
    assert (count_at(probability, truth, CURVE) == one_by_one).all()


def test_the_curve_by_hand() -> None:
    patients = [np.array([[8, 2, 0], [4, 0, 4], [0, 0, 8]]), np.array([[2, 4, 0], [1, 0, 1], [0, 0, 2]])]
    low, middle, high = curve(patients, (0.2, 0.5, 0.8))
    assert low == {
        "threshold": 0.2,
        "dice/patient": pytest.approx((16 / 18 + 4 / 8) / 2),
        "precision/pooled": 10 / 16,
        "sensitivity/pooled": 1.0,
    }
    assert (middle["precision/pooled"], middle["sensitivity/pooled"]) == (1.0, 0.5)
    assert (high["dice/patient"], high["precision/pooled"], high["sensitivity/pooled"]) == (0.0, None, 0.0)


def test_the_curve_of_patients_without_tumour_has_no_sensitivity() -> None:
    (point,) = curve([np.array([[0, 0, 0]])], (0.5,))
    assert point == {
        "threshold": 0.5,
        "dice/patient": 1.0,
        "precision/pooled": None,
        "sensitivity/pooled": None,
    }
