from random import Random

import numpy as np
import pytest
from cohorts import cohorts, score
from hypothesis import given, settings
from hypothesis import strategies as st

from bts_dist.patients import PatientScore
from bts_dist.subgroups import FEWEST, subgroups


def of_sizes(*sizes: int) -> list[PatientScore]:
    return [score(f"P{index}", (size, 0, 0)) for index, size in enumerate(sizes)]


def test_patients_are_divided_by_institution_and_by_missing_sequences() -> None:
    found = subgroups(
        [
            score("A", (1, 1, 0), institution="DU", missing=("post",)),
            score("B", (3, 0, 0), institution="CS"),
            score("C", (0, 1, 0), institution="DU", missing=("pre", "post")),
        ],
        100,
        0,
    )
    by = {(kind, name): (g.n, g.mean) for kind, groups in found.items() for name, g in groups.items()}
    assert by["institution", "CS"] == (1, 1.0)
    assert by["institution", "DU"] == (2, pytest.approx((2 / 3 + 0) / 2))
    assert by["missing", "none"] == (1, 1.0)
    assert by["missing", "post"] == (1, pytest.approx(2 / 3))
    assert by["missing", "pre+post"] == (1, 0.0)
    assert list(found["institution"]) == ["CS", "DU"]
    assert list(found["missing"]) == ["none", "post", "pre+post"]
    assert found["missing"]["pre+post"].what == "patients without pre and post"


def test_sizes_are_thirds_of_the_patients_with_a_tumour() -> None:
    found = subgroups(of_sizes(50, 10, 0, 1500, 20, 60, 40, 0), 100, 0)["size"]
    assert {name: group.n for name, group in found.items()} == {
        "none": 2,
        "small": 2,
        "medium": 2,
        "large": 2,
    }
    assert list(found) == ["none", "small", "medium", "large"]
    assert found["small"].what == "tumours of at most 20 voxels"
    assert found["medium"].what == "tumours of more than 20 voxels and at most 50 voxels"
    assert found["large"].what == "tumours of more than 50 voxels"


def test_equal_sizes_stay_together() -> None:
    found = subgroups(of_sizes(7, 7, 7, 7, 9), 100, 0)["size"]
    assert {name: group.n for name, group in found.items()} == {"small": 4, "large": 1}


def test_sizes_are_in_millilitres_where_all_spacings_are_known() -> None:
    thick = [
        score("A", (1000, 0, 0), spacing_mm=(5.0, 1.0, 1.0)),
        score("B", (1500, 0, 0), spacing_mm=(1.0,) * 3),
    ]
    found = subgroups(thick, 100, 0)["size"]
    # The one with fewer voxels is the larger one.
    assert found["small"].what == "tumours of at most 1.50 mL"
    assert found["medium"].what == "tumours of more than 1.50 mL and at most 5.00 mL"


def test_a_few_patients_have_no_interval() -> None:
    rng = np.random.default_rng(3)
    for size in (1, FEWEST - 1, FEWEST):
        patients = [score(f"P{i}", tuple(rng.integers(1, 90, 3).tolist())) for i in range(size)]
        group = subgroups(patients, 2000, 0)["institution"]["CS"]
        if size < FEWEST:
            assert (group.low, group.high) == (None, None)
        else:
            values = sorted(patient.dice for patient in patients)
            assert group.low is not None
            assert group.high is not None
            assert values[0] < group.low < group.mean < group.high < values[-1]


@settings(max_examples=40)
@given(cohorts(), st.randoms(use_true_random=False))
def test_each_patient_is_in_one_subgroup_of_a_kind(scores: list[PatientScore], random: Random) -> None:
    found = subgroups(scores, 100, 0)
    for groups in found.values():
        assert sum(group.n for group in groups.values()) == len(scores)
        weighted = sum(group.n * group.mean for group in groups.values()) / len(scores)
        assert weighted == pytest.approx(np.mean([patient.dice for patient in scores]))
    assert subgroups(random.sample(scores, len(scores)), 100, 0) == found
