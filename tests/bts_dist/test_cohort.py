"""Two groups of patients beside each other: what is summarised, and when a difference is called large."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bts_dist import cohort
from bts_dist.cohort import (
    LARGE,
    QUANTITIES,
    Cohort,
    Figures,
    Spread,
    compare,
    difference,
    figures_of,
    spreads,
)
from bts_dist.cohort_table import HEADINGS, lines
from shards.reader import PackedData

levels = st.floats(0, 255, width=32)
sequences = st.lists(levels, min_size=3, max_size=3)
patients = st.builds(
    figures_of,
    st.tuples(sequences, sequences),
    st.lists(st.integers(0, 65_536), min_size=1, max_size=8),
    st.sampled_from([(), ("pre",), ("post",), ("pre", "post")]),
    st.none() | st.tuples(*[st.floats(0.1, 10)] * 3),
)
groups = st.lists(patients, min_size=1, max_size=8)


def of(figures: Sequence[Figures], institutions: dict[str, int] | None = None, side: int = 256) -> Cohort:
    return Cohort(len(figures), side, side, institutions or {"CS": len(figures)}, spreads(figures))


def test_a_patients_figures_are_of_what_the_patient_has() -> None:
    found = figures_of(([50.0, 60.0, 60.0], [5.0, 6.0, 6.0]), [0, 30, 10, 0], ["post"], (5.0, 0.5, 0.5))
    assert found == {
        "mean_pre": 50.0,
        "mean_flair": 60.0,
        "std_pre": 5.0,
        "std_flair": 6.0,
        "slices": 4,
        "tumour_slices": 0.5,
        "tumour_pixels": 40,
        "slice_pixels": 20.0,
        "tumour_ml": 40 * 1.25 / 1000,
        "missing_pre": 0.0,
        "missing_post": 1.0,
    }
    healthy = figures_of(([1.0] * 3, [1.0] * 3), [0, 0], [], None)
    assert healthy.keys() == QUANTITIES.keys() - {"slice_pixels", "tumour_ml"}


@given(groups)
@settings(max_examples=20)
def test_spreads_are_those_of_the_values(figures: list[Figures]) -> None:
    for name, found in spreads(figures).items():
        values = [own[name] for own in figures if name in own]
        assert found.n == len(values) > 0
        assert found.mean == pytest.approx(np.mean(values))
        assert found.std == pytest.approx(np.std(values), abs=1e-6)
        assert min(values) <= found.median <= max(values)
    assert spreads(figures).keys() == {name for own in figures for name in own}


@given(groups)
@settings(max_examples=20)
def test_no_group_differs_from_itself(figures: list[Figures]) -> None:
    group = of(figures)
    found = compare(group, group)["differences"]
    assert not any(each["large"] for each in found.values())
    assert {each["smd"] for each in found.values() if "smd" in each} == {0.0}


@given(groups, groups)
@settings(max_examples=20)
def test_a_difference_has_a_sign_and_changes_it_with_the_sides(
    one: list[Figures], other: list[Figures]
) -> None:
    there, back = (compare(of(a), of(b))["differences"] for a, b in ((one, other), (other, one)))
    assert there.keys() == back.keys()
    for name in there.keys() & QUANTITIES.keys():
        if there[name]["smd"] is None:
            assert back[name]["smd"] is None
        else:
            assert there[name]["smd"] == -back[name]["smd"]
        assert there[name]["large"] == back[name]["large"]


@given(st.floats(-50, 50), st.floats(0.1, 50), st.floats(-5, 5), st.floats(0.01, 100))
def test_the_difference_is_in_standard_deviations_whatever_the_unit(
    mean: float, std: float, shift: float, unit: float
) -> None:
    found = difference(Spread(5, mean, std, mean), Spread(9, mean + shift * std, std, mean))
    assert found == pytest.approx(shift, abs=1e-9)
    scaled = difference(
        Spread(5, unit * mean, unit * std, mean), Spread(9, unit * (mean + shift * std), unit * std, mean)
    )
    assert scaled == pytest.approx(shift, abs=1e-6)


def test_a_share_differs_by_its_own_variance() -> None:
    """By hand: shares of 1/4 and 3/4 both have the variance 3/16."""
    quarter, most = ([{"missing_pre": float(n < ones)} for n in range(4)] for ones in (1, 3))
    found = compare(of(quarter), of(most))["differences"]["missing_pre"]
    assert found == {"smd": pytest.approx(0.5 / math.sqrt(3 / 16)), "large": True}


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.integers(1, 7), st.integers(1, 7))
def test_values_without_a_spread_differ_or_do_not(one: float, other: float, n: int, m: int) -> None:
    assume(one != other)
    alike, apart = (
        compare(of([{"slices": one}] * n), of([{"slices": value}] * m))["differences"]["slices"]
        for value in (one, other)
    )
    assert alike == {"smd": 0.0, "large": False}
    assert apart == {"smd": None, "large": True}


@pytest.mark.parametrize(
    ("shift", "large"), [(LARGE - 0.01, False), (LARGE + 0.01, True), (-LARGE - 0.01, True)]
)
def test_the_rule_is_half_a_standard_deviation(shift: float, large: bool) -> None:
    one = of([{"slices": 10.0}, {"slices": 12.0}])
    other = of([{"slices": 10.0 + shift}, {"slices": 12.0 + shift}])
    assert compare(one, other)["differences"]["slices"]["large"] == large


def test_sizes_and_institutions_are_compared() -> None:
    own = [{"slices": 1.0}]
    training = of(own * 3, {"CS": 2, "unknown": 1})
    found = compare(training, of(own * 4, {"CS": 1, "XX": 2, "YY": 1}, side=240))["differences"]
    assert found["size"]["large"]
    assert found["institutions"] == {"unseen": ["XX", "YY"], "patients": 3, "large": True}
    # Of patients whose institution is not known nothing can be said.
    alike = compare(of(own, {"CS": 1}), of(own, {"unknown": 1}))["differences"]
    assert alike["institutions"] == {"unseen": [], "patients": 0, "large": False}
    assert not alike["size"]["large"]


@given(groups)
@settings(max_examples=20)
def test_a_cohort_comes_back_from_plain_values(figures: list[Figures]) -> None:
    group = of(figures)
    assert cohort.from_json(cohort.to_json(group)) == group


@given(groups, groups)
@settings(max_examples=20)
def test_the_table_has_both_groups_and_marks_what_is_large(one: list[Figures], other: list[Figures]) -> None:
    differs = compare(of(one, {"CS": len(one)}), of(other, {"XX": len(other)}))
    shown = {line[0]: line for line in lines(differs)}
    assert all(len(line) == len(HEADINGS) for line in shown.values())
    assert shown["patients"][1:3] == (str(len(one)), str(len(other)))
    assert shown["institutions"][1:] == (
        f"CS {len(one)}",
        f"XX {len(other)}",
        f"{len(other)} patients from unseen ones",
        "large",
    )
    for name, found in differs["differences"].items():
        if name in QUANTITIES:
            assert (shown[QUANTITIES[name]][4] == "large") == found["large"]


def test_figures_are_written_by_their_kind() -> None:
    own = [
        {"slices": 20.0, "tumour_slices": 0.25, "tumour_pixels": 1000.0},
        {"slices": 30.0, "tumour_slices": 0.5, "tumour_pixels": 5000.0},
    ]
    many = {f"S{n}": n + 1 for n in range(9)}
    shown = {line[0]: line for line in lines(compare(of(own, many), of(own, many)))}
    assert shown["slices per patient"][1:4] == ("25.0 ± 5.00", "25.0 ± 5.00", "+0.00")
    assert shown["share of slices with tumour"][1] == "38%"
    assert shown["tumour pixels per patient"][1] == "3,000 ± 2,000, median 3,000"
    assert shown["institutions"][1] == "S8 9, S7 8, S6 7, S5 6, S4 5, S3 4 and 3 more"
    assert shown["pixels of a slice"][1] == "256 × 256"
    assert "tumour volume, ml" not in shown


def test_without_the_training_patients_nothing_is_compared() -> None:
    differs = compare(None, of([{"slices": 20.0}]))
    assert "does not say what its training patients were like" in differs["unknown"]
    assert differs["differences"] == {}
    assert {line[1] for line in lines(differs)} == {"unknown"}
    assert {line[4] for line in lines(differs)} == {""}


def test_the_figures_of_a_packed_set_are_those_of_its_index(packed: object) -> None:
    reader = PackedData(str(packed)).training("train")
    found = cohort.summarise(reader)
    index = reader.index
    pixels = [int(index.tumour_pixels[index.samples_of(p)].sum()) for p in index.patients()]
    assert (found.patients, found.height, found.width) == (6, 32, 32)
    assert sum(found.institutions.values()) == 6
    assert found.quantities["tumour_pixels"].mean == np.mean(pixels)
    assert found.quantities["tumour_pixels"].median == np.median(pixels)
    assert found.quantities["slices"].mean == len(index) / 6
    levels = [float(index.mean[index.samples_of(p)[0], 1]) for p in index.patients()]
    assert found.quantities["mean_flair"].std == pytest.approx(np.std(levels))
    assert found.quantities["mean_pre"].n == 6 * (1 - found.quantities["missing_pre"].mean)


def test_of_many_patients_some_are_read_spread_evenly(
    packed: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = PackedData(str(packed)).training("train")
    read: list[int] = []
    facts = reader.read_facts
    monkeypatch.setattr(reader, "read_facts", lambda sample: read.append(sample) or facts(sample))
    monkeypatch.setattr(cohort, "MOST_READ", 3)
    found = cohort.summarise(reader)
    assert [reader.index.patient[sample] for sample in read] == [
        reader.index.patients()[at] for at in (0, 2, 5)
    ]
    assert (found.patients, found.quantities["slices"].n) == (6, 3)
