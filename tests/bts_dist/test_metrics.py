import json
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from cohorts import cohort, cohorts, score, settings_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bts_dist.config import ScoreConfig
from bts_dist.estimates import draw
from bts_dist.metrics import check_pooled, summarise, to_json
from bts_dist.patients import PatientScore
from bts_dist.surface import SurfaceScores

OVERLAP = [
    "dice/patient",
    "iou/patient",
    "dice/slice",
    "iou/slice",
    "dice/slice_positive",
    "iou/slice_positive",
    "dice/pooled",
    "iou/pooled",
]
RATES = [
    f"{rate}/{unit}" for rate in ("sensitivity", "specificity", "precision") for unit in ("patient", "pooled")
]
SURFACE = ["hd95/patient", "asd/patient", "surface_dice/patient"]
VOLUME = ["volume_error/patient", "volume_bias/patient"]
LESIONS = ["lesion_f1/patient", "lesion_f1/pooled"]
ROWS = [*OVERLAP, *RATES, *SURFACE, *VOLUME, *LESIONS]


def test_table_of_two_patients_by_hand() -> None:
    table = summarise(
        [
            score(
                "A", (8, 2, 2), (0, 0, 0), (0, 5, 0), hd95=2.0, surface_dice=0.8, asd=1.5, lesions=(1, 1, 0)
            ),
            score("B", (1, 0, 2), hd95=None, surface_dice=0.0, asd=None, lesions=(1, 0, 1)),
        ],
        settings_of(400),
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
        "sensitivity/patient": ((0.8 + 1 / 3) / 2, (0.8 + 1 / 3) / 2, 2),
        "sensitivity/pooled": (9 / 13, None, 2),
        "specificity/patient": ((5983 / 5990 + 1) / 2, (5983 / 5990 + 1) / 2, 2),
        "specificity/pooled": (7980 / 7987, None, 2),
        "precision/patient": ((8 / 15 + 1) / 2, (8 / 15 + 1) / 2, 2),
        "precision/pooled": (9 / 16, None, 2),
        "hd95/patient": (2.0, 2.0, 1),
        "asd/patient": (1.5, 1.5, 1),
        "surface_dice/patient": (0.4, 0.4, 2),
        "volume_error/patient": ((0.5 + 2 / 3) / 2, (0.5 + 2 / 3) / 2, 2),
        "volume_bias/patient": ((0.5 - 2 / 3) / 2, (0.5 - 2 / 3) / 2, 2),
        "lesion_f1/patient": (2 / 3, 2 / 3, 2),
        "lesion_f1/pooled": (4 / 6, None, 2),
    }
    assert list(expected) == ROWS
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
    table = summarise(cohort(), settings_of(100, 0))
    assert table["dice/patient"].rule == "empty truth and empty prediction count as 1"
    assert table["dice/slice"].rule == "empty truth and empty prediction count as 1"
    assert table["dice/slice_positive"].rule == "only slices whose truth has tumour"
    assert "left out where exactly one of them is empty" in table["hd95/patient"].rule
    assert all(estimate.rule for estimate in table.values())


def test_rows_without_a_value_are_absent() -> None:
    undefined = {"hd95": None, "asd": None, "surface_dice": 0.0}
    without_tumour = [score(name, (0, 0, 0), (0, 3, 0), lesions=(0, 1, 0), **undefined) for name in "AB"]
    rows = set(summarise(without_tumour, settings_of(100)))
    truth_only = {"dice/slice_positive", "iou/slice_positive", "sensitivity/patient", "sensitivity/pooled"}
    assert rows == set(ROWS) - truth_only - {*SURFACE[:2], *VOLUME}
    nothing_at_all = [
        score(name, (0, 0, 0), hd95=0.0, asd=0.0, surface_dice=1.0, lesions=(0, 0, 0)) for name in "AB"
    ]
    pooled = {"dice/pooled", "iou/pooled", "lesion_f1/pooled", "precision/patient", "precision/pooled"}
    assert set(summarise(nothing_at_all, settings_of(100))) == set(ROWS) - truth_only - pooled


def test_rows_say_their_unit_and_tolerance() -> None:
    table = summarise(cohort(), settings_of(100))
    units = {name: row.unit for name, row in table.items() if row.unit is not None}
    assert units == {"hd95/patient": "px", "asd/patient": "px", "surface_dice/patient": "at 2 px"}


def test_distances_are_in_millimetres_where_all_spacings_are_known() -> None:
    settings = ScoreConfig(bootstrap=100, tolerance_mm=1.5)
    known = [replace(own, mm=SurfaceScores(7.0, 3.0, 0.25)) for own in cohort()]
    table = summarise(known, settings)
    assert [(table[name].mean, table[name].unit) for name in SURFACE] == [
        (7.0, "mm"),
        (3.0, "mm"),
        (0.25, "at 1.5 mm"),
    ]
    assert {row["unit"] for row in to_json(known, table)["patients"]} == {"mm"}
    mixed = [*known[1:], cohort()[0]]
    assert summarise(mixed, settings) == summarise(cohort(), settings)


def test_patients_without_a_value_are_not_counted() -> None:
    one_with_tumour = [score("A", (3, 1, 0)), *(score(name, (0, 0, 0)) for name in "BCDEFGH")]
    positive = summarise(one_with_tumour, settings_of(100, 0))["dice/slice_positive"]
    assert (positive.n, positive.mean, positive.low, positive.high) == (1, 6 / 7, 6 / 7, 6 / 7)


@settings(max_examples=60)
@given(cohorts(), st.randoms(use_true_random=False))
def test_table_is_finite_plain_consistent_and_independent_of_order(
    scores: list[PatientScore], random: Random
) -> None:
    table = summarise(scores, settings_of(100, 3))
    shuffled = random.sample(scores, len(scores))
    assert summarise(shuffled, settings_of(100, 3)) == table
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
    row = summarise(scores, settings_of(400, 0))["dice/patient"]
    assert row.low <= row.mean <= row.high
    assert row.low < row.high


@settings(max_examples=60)
@given(cohorts())
def test_an_empty_slice_flatters_the_slice_mean_only(scores: list[PatientScore]) -> None:
    first = scores[0]
    padded = replace(first, counts=np.concatenate([first.counts, np.zeros((1, 3), np.int64)]))
    before = summarise(scores, settings_of(100, 0))
    after = summarise([padded, *scores[1:]], settings_of(100, 0))
    if before["dice/slice"].mean < 1:
        assert after["dice/slice"].mean > before["dice/slice"].mean
    for name in before.keys() - {"dice/slice", "iou/slice", "specificity/patient", "specificity/pooled"}:
        assert after[name] == before[name]


def test_more_slices_of_the_same_patients_do_not_narrow_the_interval() -> None:
    scores = cohort()
    repeated = [replace(patient, counts=np.tile(patient.counts, (20, 1))) for patient in scores]
    once, often = summarise(scores, settings_of(500, 1)), summarise(repeated, settings_of(500, 1))
    for name in ROWS:
        assert (often[name].low, often[name].high) == pytest.approx((once[name].low, once[name].high)), name


def test_interval_has_the_width_of_the_normal_theory() -> None:
    scores = cohort(size=200)
    values = np.array([patient.dice for patient in scores])
    half_width = 1.96 * values.std() / np.sqrt(len(values))
    row = summarise(scores, settings_of(4000, 0))["dice/patient"]
    assert row.mean - row.low == pytest.approx(half_width, rel=0.1)
    assert row.high - row.mean == pytest.approx(half_width, rel=0.1)


def test_rows_share_the_draws() -> None:
    one_slice_each = [replace(patient, counts=patient.counts[:1]) for patient in cohort()]
    table = summarise(one_slice_each, settings_of(200, 5))
    assert table["dice/slice"] == table["dice/patient"]


def test_seed_decides_the_interval_only() -> None:
    one, same, other = (summarise(cohort(), settings_of(200, seed))["dice/patient"] for seed in (1, 1, 2))
    assert one == same
    assert one.low != other.low
    assert (one.mean, one.median, one.n) == (other.mean, other.median, other.n)


def test_table_refuses_too_few_resamples_no_patients_and_duplicates() -> None:
    with pytest.raises(ValueError, match="99 bootstrap resamples are too few"):
        draw(12, 99, 0)
    with pytest.raises(ValueError, match="no patients"):
        summarise([], settings_of(100, 0))
    with pytest.raises(ValueError, match="P00 is scored twice"):
        summarise([*cohort(), cohort()[0]], settings_of(100, 0))


def test_pooled_rows_that_contradict_each_other_are_refused() -> None:
    scores = cohort()
    table = summarise(scores, settings_of(100, 0))
    check_pooled(table)
    for shift in (2e-9, -2e-9, float("nan")):
        bent = {**table, "iou/pooled": replace(table["iou/pooled"], mean=table["iou/pooled"].mean + shift)}
        with pytest.raises(ValueError, match="refused"):
            check_pooled(bent)
        with pytest.raises(ValueError, match="refused"):
            to_json(scores, bent)


def test_json_holds_the_table_and_the_patients_in_plain_values() -> None:
    scores = [
        score("B", (4, 0, 0), (0, 2, 2), (0, 0, 0), hd95=3.5, surface_dice=0.75, missing=("pre", "post")),
        score("A", (0, 7, 0), hd95=None, asd=None, surface_dice=0.0, lesions=(0, 1, 0)),
    ]
    table = summarise(scores, settings_of(100, 0))
    report = to_json(scores, table)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert list(report["metrics"]) == list(table)
    assert list(report["metrics"]["dice/patient"]) == ["mean", "median", "low", "high", "n", "rule", "unit"]
    assert report["metrics"]["dice/patient"]["mean"] == table["dice/patient"].mean
    a, b = report["patients"]
    assert a == {
        "patient": "A",
        "institution": "CS",
        "missing": "",
        "slices": 1,
        "tumour_slices": 0,
        "tumour_ml": None,
        "dice": 0.0,
        "iou": 0.0,
        "tp": 0,
        "fp": 7,
        "fn": 0,
        "sensitivity": None,
        "specificity": 1993 / 2000,
        "precision": 0.0,
        "hd95": None,
        "asd": None,
        "surface_dice": 0.0,
        "unit": "px",
        "volume_error": None,
        "volume_bias": None,
        "lesions_found": 0,
        "lesions_imagined": 1,
        "lesions_missed": 0,
        "lesion_f1": 0.0,
    }
    assert (b["patient"], b["missing"], b["slices"], b["tumour_slices"]) == ("B", "pre+post", 3, 2)
    assert (b["dice"], b["iou"], b["tp"], b["fp"], b["fn"]) == (8 / 12, 0.5, 4, 2, 2)
    assert {type(value) for row in report["patients"] for value in row.values()} == {
        str,
        int,
        float,
        type(None),
    }
