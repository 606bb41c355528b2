import csv
import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from bts_dist.metrics import (
    Counts,
    PatientScore,
    best_threshold,
    check_pooled,
    count,
    dice,
    iou,
    summarise,
    to_json,
    write_csv,
)

ROWS = [
    "dice/patient",
    "iou/patient",
    "dice/slice",
    "iou/slice",
    "dice/slice_positive",
    "iou/slice_positive",
    "dice/pooled",
    "iou/pooled",
    "hd95/patient",
    "surface_dice/patient",
]


def score(
    patient: str, *counts: tuple[int, int, int], hd95: float | None = 1.0, surface_dice: float | None = 0.5
) -> PatientScore:
    return PatientScore(patient, "CS", np.array(counts, dtype=np.int64), hd95, surface_dice)


voxels = st.integers(0, 500)
count_arrays = array_shapes(min_dims=0, max_dims=2, max_side=5).flatmap(
    lambda shape: arrays(np.int64, (*shape, 3), elements=voxels)
)
distances = st.none() | st.floats(0, 300)
shares = st.none() | st.floats(0, 1)


@st.composite
def cohorts(draw: st.DrawFn, min_size: int = 1) -> list[PatientScore]:
    slices = st.lists(st.tuples(voxels, voxels, voxels) | st.just((0, 0, 0)), min_size=1, max_size=4)
    return [
        score(f"P{index}", *counts, hd95=draw(distances), surface_dice=draw(shares))
        for index, counts in enumerate(draw(st.lists(slices, min_size=min_size, max_size=6)))
    ]


def cohort(size: int = 12) -> list[PatientScore]:
    rng = np.random.default_rng(7)
    return [
        score(f"P{index:02d}", *map(tuple, rng.integers(0, 60, (5, 3)).tolist()), hd95=float(rng.gamma(2, 3)))
        for index in range(size)
    ]


# Counts


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


# Patients


def test_patient_ratios_are_of_the_whole_volume() -> None:
    patient = score("P0", (4, 0, 0), (0, 2, 2), (0, 0, 0))
    assert (patient.dice, patient.iou) == (8 / 12, 4 / 8)
    assert patient.has_tumour.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("counts", "hd95", "message"),
    [
        (np.zeros((0, 3), np.int64), 1.0, "expected int64"),
        (np.zeros(3, np.int64), 1.0, "expected int64"),
        (np.zeros((2, 3), np.int32), 1.0, "expected int64"),
        (np.array([[1, -1, 0]]), 1.0, "negative"),
        (np.zeros((2, 3), np.int64), float("inf"), "hd95 is inf; use None"),
    ],
)
def test_patient_score_refuses_nonsense(counts: Counts, hd95: float, message: str) -> None:
    with pytest.raises(ValueError, match=f"P0: .*{message}"):
        PatientScore("P0", "CS", counts, hd95, None)


# The table


def test_table_of_two_patients_by_hand() -> None:
    table = summarise(
        [
            score("A", (8, 2, 2), (0, 0, 0), (0, 5, 0), hd95=2.0, surface_dice=0.8),
            score("B", (1, 0, 2), hd95=None, surface_dice=None),
        ],
        resamples=400,
        seed=0,
    )
    assert list(table) == ROWS
    d_a, d_b = 16 / 25, 2 / 4
    expected = {
        "dice/patient": ((d_a + d_b) / 2, (d_a + d_b) / 2, 2),
        "iou/patient": ((8 / 17 + 1 / 3) / 2, (8 / 17 + 1 / 3) / 2, 2),
        "dice/slice": ((0.8 + 1 + 0 + 0.5) / 4, (0.8 + 0.5) / 2, 2),
        "iou/slice": ((8 / 12 + 1 + 0 + 1 / 3) / 4, (8 / 12 + 1 / 3) / 2, 2),
        "dice/slice_positive": ((0.8 + 0.5) / 2, (0.8 + 0.5) / 2, 2),
        "iou/slice_positive": ((8 / 12 + 1 / 3) / 2, (8 / 12 + 1 / 3) / 2, 2),
        "dice/pooled": (18 / 29, None, 2),
        "iou/pooled": (9 / 20, None, 2),
        "hd95/patient": (2.0, 2.0, 1),
        "surface_dice/patient": (0.8, 0.8, 1),
    }
    for name, (mean, median, n) in expected.items():
        assert table[name].mean == pytest.approx(mean, abs=1e-12), name
        assert table[name].median == pytest.approx(median, abs=1e-12), name
        assert table[name].n == n, name
    # Of two patients a resample holds one, the other or both: the interval reaches from one to the other.
    assert (table["dice/patient"].low, table["dice/patient"].high) == (d_b, d_a)
    # slices count singly, patients are drawn: A alone gives (0.8 + 1 + 0) / 3, B alone 0.5
    assert table["dice/slice"].low == 0.5
    assert table["dice/slice"].high == pytest.approx(0.6)
    assert (table["dice/pooled"].low, table["dice/pooled"].high) == (d_b, d_a)
    # B has no surface score, so resamples of B alone stay out
    assert (table["hd95/patient"].low, table["hd95/patient"].high) == (2.0, 2.0)


def test_every_row_prints_its_rule() -> None:
    table = summarise(cohort(), resamples=100, seed=0)
    assert table["dice/patient"].rule == "empty truth and empty prediction count as 1"
    assert table["dice/slice"].rule == "empty truth and empty prediction count as 1"
    assert table["dice/slice_positive"].rule == "only slices whose truth has tumour"
    assert "left out where exactly one of them is empty" in table["hd95/patient"].rule
    assert all(estimate.rule for estimate in table.values())


def test_rows_without_a_value_are_absent() -> None:
    without_tumour = [score(name, (0, 0, 0), (0, 3, 0), hd95=None, surface_dice=None) for name in "AB"]
    assert list(summarise(without_tumour, resamples=100, seed=0)) == [*ROWS[:4], "dice/pooled", "iou/pooled"]
    nothing_at_all = [score(name, (0, 0, 0), hd95=0.0, surface_dice=1.0) for name in "AB"]
    assert list(summarise(nothing_at_all, resamples=100, seed=0)) == [*ROWS[:4], *ROWS[8:]]


def test_patients_without_a_value_are_not_counted() -> None:
    one_with_tumour = [score("A", (3, 1, 0)), *(score(name, (0, 0, 0)) for name in "BCDEFGH")]
    positive = summarise(one_with_tumour, resamples=100, seed=0)["dice/slice_positive"]
    assert (positive.n, positive.mean, positive.low, positive.high) == (1, 6 / 7, 6 / 7, 6 / 7)


@settings(max_examples=60)
@given(cohorts(), st.randoms(use_true_random=False))
def test_table_is_finite_plain_consistent_and_independent_of_order(
    scores: list[PatientScore], random: Random
) -> None:
    table = summarise(scores, resamples=100, seed=3)
    shuffled = random.sample(scores, len(scores))
    assert summarise(shuffled, resamples=100, seed=3) == table
    for name, row in table.items():
        values = [row.mean, row.low, row.high, *([] if row.median is None else [row.median])]
        assert all(type(value) is float and np.isfinite(value) for value in values), name
        assert type(row.n) is int, name
        assert 1 <= row.n <= len(scores), name
        assert row.low <= row.high, name
    for unit in ("patient", "slice", "pooled"):
        assert (f"dice/{unit}" in table) == (f"iou/{unit}" in table)
    if "dice/pooled" in table:
        d = table["dice/pooled"].mean
        assert table["iou/pooled"].mean == pytest.approx(d / (2 - d), abs=1e-9)


@settings(max_examples=60)
@given(cohorts(min_size=2))
def test_interval_holds_the_mean(scores: list[PatientScore]) -> None:
    assume(len({patient.dice for patient in scores}) > 1)
    row = summarise(scores, resamples=400, seed=0)["dice/patient"]
    assert row.low <= row.mean <= row.high
    assert row.low < row.high


@settings(max_examples=60)
@given(cohorts())
def test_an_empty_slice_flatters_the_slice_mean_only(scores: list[PatientScore]) -> None:
    first = scores[0]
    padded = replace(first, counts=np.concatenate([first.counts, np.zeros((1, 3), np.int64)]))
    before = summarise(scores, resamples=100, seed=0)
    after = summarise([padded, *scores[1:]], resamples=100, seed=0)
    if before["dice/slice"].mean < 1:
        assert after["dice/slice"].mean > before["dice/slice"].mean
    for name in before.keys() - {"dice/slice", "iou/slice"}:
        assert after[name] == before[name]


def test_more_slices_of_the_same_patients_do_not_narrow_the_interval() -> None:
    scores = cohort()
    repeated = [replace(patient, counts=np.tile(patient.counts, (20, 1))) for patient in scores]
    once, often = summarise(scores, 500, seed=1), summarise(repeated, 500, seed=1)
    for name in ROWS:
        assert (often[name].low, often[name].high) == pytest.approx((once[name].low, once[name].high)), name


def test_interval_has_the_width_of_the_normal_theory() -> None:
    scores = cohort(size=200)
    values = np.array([patient.dice for patient in scores])
    half_width = 1.96 * values.std() / np.sqrt(len(values))
    row = summarise(scores, resamples=4000, seed=0)["dice/patient"]
    assert row.mean - row.low == pytest.approx(half_width, rel=0.1)
    assert row.high - row.mean == pytest.approx(half_width, rel=0.1)


def test_rows_share_the_draws() -> None:
    one_slice_each = [replace(patient, counts=patient.counts[:1]) for patient in cohort()]
    table = summarise(one_slice_each, resamples=200, seed=5)
    assert table["dice/slice"] == table["dice/patient"]


def test_seed_decides_the_interval_only() -> None:
    one, same, other = (summarise(cohort(), resamples=200, seed=seed)["dice/patient"] for seed in (1, 1, 2))
    assert one == same
    assert one.low != other.low
    assert (one.mean, one.median, one.n) == (other.mean, other.median, other.n)


def test_table_refuses_too_few_resamples_no_patients_and_duplicates() -> None:
    with pytest.raises(ValueError, match="99 bootstrap resamples are too few"):
        summarise(cohort(), resamples=99, seed=0)
    with pytest.raises(ValueError, match="no patients"):
        summarise([], resamples=100, seed=0)
    with pytest.raises(ValueError, match="P00 is scored twice"):
        summarise([*cohort(), cohort()[0]], resamples=100, seed=0)


def test_pooled_rows_that_contradict_each_other_are_refused() -> None:
    scores = cohort()
    table = summarise(scores, resamples=100, seed=0)
    check_pooled(table)
    for shift in (2e-9, -2e-9, float("nan")):
        bent = {**table, "iou/pooled": replace(table["iou/pooled"], mean=table["iou/pooled"].mean + shift)}
        with pytest.raises(ValueError, match="refused"):
            check_pooled(bent)
        with pytest.raises(ValueError, match="refused"):
            to_json(scores, bent)


# Files


def test_json_holds_the_table_and_the_patients_in_plain_values() -> None:
    scores = [
        score("B", (4, 0, 0), (0, 2, 2), (0, 0, 0), hd95=3.5, surface_dice=0.75),
        score("A", (0, 7, 0), hd95=None, surface_dice=None),
    ]
    table = summarise(scores, resamples=100, seed=0)
    report = to_json(scores, table)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert list(report["metrics"]) == list(table)
    assert list(report["metrics"]["dice/patient"]) == ["mean", "median", "low", "high", "n", "rule"]
    assert report["metrics"]["dice/patient"]["mean"] == table["dice/patient"].mean
    a, b = report["patients"]
    assert a == {
        "patient": "A",
        "institution": "CS",
        "slices": 1,
        "tumour_slices": 0,
        "dice": 0.0,
        "iou": 0.0,
        "tp": 0,
        "fp": 7,
        "fn": 0,
        "hd95": None,
        "surface_dice": None,
    }
    assert (b["patient"], b["slices"], b["tumour_slices"]) == ("B", 3, 2)
    assert (b["dice"], b["iou"], b["tp"], b["fp"], b["fn"]) == (8 / 12, 0.5, 4, 2, 2)
    assert {type(value) for row in report["patients"] for value in row.values()} == {
        str,
        int,
        float,
        type(None),
    }


def test_csv_holds_the_same_rows(tmp_path: Path) -> None:
    scores = [*cohort(3)[::-1], score("Z", (0, 7, 0), hd95=None, surface_dice=None)]
    write_csv(tmp_path / "patients.csv", scores)
    with (tmp_path / "patients.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = to_json(scores, {})["patients"]
    assert rows == [{k: "" if v is None else str(v) for k, v in row.items()} for row in expected]
    assert [row["patient"] for row in rows] == ["P00", "P01", "P02", "Z"]
    assert rows[-1]["hd95"] == ""


# The threshold


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
