import csv
from pathlib import Path

import numpy as np
import pytest
from cohorts import cohort, score

from bts_dist.counts import Counts
from bts_dist.metrics import to_json
from bts_dist.patients import PatientScore, unit_of, write_csv
from bts_dist.surface import SurfaceScores


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
        (np.full((2, 3), 7, np.int64), 1.0, "slice of 20 pixels has counts of more"),
        (np.zeros((2, 3), np.int64), float("inf"), "hd95 is inf; use None"),
    ],
)
def test_patient_score_refuses_nonsense(counts: Counts, hd95: float, message: str) -> None:
    with pytest.raises(ValueError, match=f"P0: .*{message}"):
        PatientScore("P0", "CS", counts, 20, np.zeros(3, np.int64), SurfaceScores(hd95, None, 0.0))


@pytest.mark.parametrize(
    ("counts", "bias"),
    [
        ((5, 3, 3), 0.0),
        ((5, 4, 0), 0.8),
        ((5, 0, 5), -0.5),
        ((0, 0, 9), -1.0),
        ((0, 0, 0), 0.0),
        ((0, 9, 0), None),
    ],
)
def test_volume_is_compared_with_the_true_one(counts: tuple[int, int, int], bias: float | None) -> None:
    assert score("P0", counts).volume_bias == bias


def test_millimetres_need_every_patients_spacing() -> None:
    near = SurfaceScores(2.5, 1.5, 0.9)
    known = score("A", (30, 0, 10), mm=near, spacing_mm=(5.0, 0.5, 0.5))
    assert known.tumour_ml == 40 * 5 * 0.5 * 0.5 / 1000
    assert unit_of([known]) == "mm"
    assert known.surface("mm") == near
    assert unit_of([known, score("B", (1, 0, 0))]) == "px"


def test_csv_holds_the_same_rows(tmp_path: Path) -> None:
    scores = [*cohort(3)[::-1], score("Z", (0, 7, 0), hd95=None, asd=None, surface_dice=0.0)]
    write_csv(tmp_path / "patients.csv", scores)
    with (tmp_path / "patients.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = to_json(scores, {})["patients"]
    assert rows == [{k: "" if v is None else str(v) for k, v in row.items()} for row in expected]
    assert [row["patient"] for row in rows] == ["P00", "P01", "P02", "Z"]
    assert rows[-1]["hd95"] == ""


def test_a_fold_has_a_column_only_where_there_are_folds(tmp_path: Path) -> None:
    columns = []
    for fold in (None, 0):
        write_csv(tmp_path / "patients.csv", [score("A", (1, 0, 0), fold=fold)])
        with (tmp_path / "patients.csv").open(newline="") as file:
            columns.append(next(csv.reader(file)))
    assert columns[1] == ["patient", "fold", *columns[0][1:]]
