"""One patient's part does not depend on the others, so any division of the patients gives the same bytes."""

import json
from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bts_dist.config import ScoreConfig
from bts_dist.evaluation import Evaluation, evaluate, result
from shards.meta import Facts

SETTINGS = ScoreConfig(bootstrap=100)
INSTITUTIONS = ("CS", "DU", "HT")
MISSING: tuple[tuple[str, ...], ...] = ((), ("post",), ("pre", "post"))


def patient(number: int, spacing: bool = False) -> Evaluation:
    """A patient of noise with a blob; one in five has no tumour, and one in seven no prediction."""
    rng = np.random.default_rng(number)
    centre = rng.uniform((0, 4, 4), (3, 15, 15))
    distance = np.linalg.norm(np.indices((4, 20, 20)) - np.reshape(centre, (3, 1, 1, 1)), axis=0)
    truth = (distance < rng.uniform(3, 8)) & (number % 5 > 0)
    probability = 1 / (1 + np.exp(distance - rng.uniform(3, 8) + rng.normal(0, 0.5, distance.shape)))
    probability = (probability * (number % 7 > 0)).astype(np.float32)
    facts = Facts(MISSING[number % 3], (5.0, 0.9, 0.9) if spacing else None)
    return evaluate(
        f"P{number:02d}",
        INSTITUTIONS[number % 3],
        facts,
        probability,
        probability > 0.5,
        truth,
        SETTINGS,
    )


PATIENTS = [patient(number) for number in range(16)]


def in_bytes(evaluations: Sequence[Evaluation]) -> bytes:
    return json.dumps(result(evaluations, SETTINGS), allow_nan=False).encode()


@settings(max_examples=12)
@given(st.integers(1, 6), st.randoms(use_true_random=False))
def test_any_division_of_the_patients_gives_the_same_bytes(workers: int, random: Random) -> None:
    numbers = random.sample(range(len(PATIENTS)), len(PATIENTS))
    parts = [[patient(number) for number in numbers[i::workers]] for i in range(workers)]
    random.shuffle(parts)
    assert in_bytes([own for part in parts for own in part]) == in_bytes(PATIENTS)


def test_sums_over_patients_are_whole_numbers_that_add_up() -> None:
    whole = result(PATIENTS, SETTINGS)
    halves = [result(part, SETTINGS) for part in (PATIENTS[:7], PATIENTS[7:])]
    for region in ("all", "near"):
        for number, bin_ in enumerate(whole["calibration"][region]["bins"]):
            for name in ("voxels", "tumour"):
                assert bin_[name] == sum(half["calibration"][region]["bins"][number][name] for half in halves)
    assert sum(bin_["voxels"] for bin_ in whole["calibration"]["all"]["bins"]) == 16 * 4 * 20 * 20


def test_the_result_has_all_parts_in_plain_finite_values() -> None:
    found = result(PATIENTS, SETTINGS)
    assert list(found) == ["metrics", "patients", "subgroups", "calibration", "thresholds"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert list(found["subgroups"]) == ["institution", "missing", "size"]
    assert {name: group["n"] for name, group in found["subgroups"]["institution"].items()} == {
        "CS": 6,
        "DU": 5,
        "HT": 5,
    }
    assert found["subgroups"]["size"]["none"]["n"] == 4
    assert list(found["calibration"]) == ["all", "near"]
    assert len(found["thresholds"]) == 19


def test_the_curve_and_the_table_agree_at_the_threshold() -> None:
    found = result(PATIENTS, SETTINGS)
    (point,) = [point for point in found["thresholds"] if point["threshold"] == 0.5]
    table = found["metrics"]
    assert point["dice/patient"] == pytest.approx(table["dice/patient"]["mean"], abs=1e-15)
    assert point["precision/pooled"] == table["precision/pooled"]["mean"]
    assert point["sensitivity/pooled"] == table["sensitivity/pooled"]["mean"]


def test_background_dominates_calibration_over_all_voxels() -> None:
    everywhere, near = (result(PATIENTS, SETTINGS)["calibration"][region] for region in ("all", "near"))
    assert near["ece"]["mean"] > everywhere["ece"]["mean"]
    assert near["ece"]["n"] < everywhere["ece"]["n"] == 16


def test_spacing_decides_the_unit_of_all_or_none() -> None:
    known = [patient(number, spacing=True) for number in range(4)]
    assert result(known, SETTINGS)["metrics"]["hd95/patient"]["unit"] == "mm"
    assert result([*known, patient(4)], SETTINGS)["metrics"]["hd95/patient"]["unit"] == "px"
    assert result(known, SETTINGS)["patients"][1]["tumour_ml"] > 0


def test_nothing_anywhere_is_perfect_and_finite() -> None:
    nothing = np.zeros((2, 8, 8))
    found = result(
        [
            evaluate(
                "P", "CS", Facts((), None), nothing.astype(np.float32), nothing > 0, nothing > 0, SETTINGS
            )
        ],
        SETTINGS,
    )
    assert found["metrics"]["dice/patient"]["mean"] == found["metrics"]["surface_dice/patient"]["mean"] == 1
    assert found["metrics"]["asd/patient"]["mean"] == found["metrics"]["volume_error/patient"]["mean"] == 0
    assert found["calibration"]["near"] is None
    assert found["calibration"]["all"]["ece"]["mean"] == 0
    assert found["thresholds"][0]["precision/pooled"] is None
    json.dumps(found, allow_nan=False)
