"""Rows of a score get their names, digits and axes; rows of an earlier or later version are shown, too."""

import pytest

from bts_dist.score_tables import in_order, is_ratio, metric, patient_columns, ratio_axis, subgroup_rows


def row(mean: float, low: float, high: float, unit: str | None = None) -> dict[str, object]:
    return {"mean": mean, "median": mean, "low": low, "high": high, "n": 5, "rule": "r", "unit": unit}


def group(mean: float, low: float | None = None, high: float | None = None) -> dict[str, object]:
    return {"what": "some", "n": 4, "mean": mean, "median": mean, "low": low, "high": high}


@pytest.mark.parametrize(
    ("key", "unit", "label", "digits"),
    [
        ("dice/patient", None, "Dice per patient, in 3D", 3),
        ("hd95/patient", None, "HD95 (px) per patient, in 3D", 1),
        ("hd95/patient", "mm", "HD95 (mm) per patient, in 3D", 1),
        ("surface_dice/patient", "at 2 px", "Surface Dice (at 2 px) per patient, in 3D", 3),
        ("precision/pooled", None, "Precision pooled over all pixels", 3),
        ("lesion_f1/pooled", None, "Lesion F1 pooled over all lesions", 3),
        ("novelty/patient", None, "novelty per patient, in 3D", 3),
    ],
)
def test_a_row_is_named_with_its_unit(key: str, unit: str | None, label: str, digits: int) -> None:
    found = metric(key, {key: row(0.5, 0.4, 0.6, unit)}, (0.4, 1.0), None)
    assert (found["label"], found["digits"]) == (label, digits)


def test_what_is_no_ratio_has_an_axis_of_its_own() -> None:
    metrics = {
        "dice/patient": row(0.9, 0.85, 0.95),
        "volume_bias/patient": row(-0.2, -0.35, 0.1),
        "asd/patient": row(2.0, 1.0, 3.0, "px"),
    }
    assert [is_ratio(key) for key in metrics] == [True, False, False]
    axis = ratio_axis(metrics, {})
    assert axis == (0.8, 1.0)
    assert "axis from -0.4 to 0.2" in metric("volume_bias/patient", metrics, axis, None)["bar"]
    assert "axis from 0 to 3" in metric("asd/patient", metrics, axis, None)["bar"]


def test_dice_and_iou_come_first_side_by_side() -> None:
    keys = ["hd95/patient", "iou/slice", "dice/pooled", "dice/slice", "iou/pooled"]
    assert in_order(dict.fromkeys(keys)) == [
        "dice/slice",
        "iou/slice",
        "dice/pooled",
        "iou/pooled",
        "hd95/patient",
    ]


def test_columns_of_patients_are_those_that_say_something() -> None:
    patients = [
        {"patient": "a", "institution": "CS", "missing": "", "tumour_ml": None, "tp": 3, "dice": 0.5}
        | {"hd95": None, "asd": 1.5, "unit": "mm", "lesions_found": 1, "new_figure": 0.25},
        {"patient": "b", "institution": "CS", "missing": "", "tumour_ml": None, "tp": 0, "dice": 0.0}
        | {"hd95": 2.5, "asd": None, "unit": "mm", "lesions_found": 0, "new_figure": 0.75},
    ]
    found = {column["label"]: column for column in patient_columns(patients)}
    assert list(found) == [
        "Patient",
        "Institution",
        "Dice",
        "HD95, mm",
        "Surface distance, mm",
        "TP",
        "Lesions found",
        "new figure",
    ]
    assert [name for name, column in found.items() if column["text"]] == ["Patient", "Institution"]
    digits = {name: column["digits"] for name, column in found.items() if not column["text"]}
    assert digits == {
        "Dice": 3,
        "HD95, mm": 1,
        "Surface distance, mm": 1,
        "TP": None,
        "Lesions found": None,
        "new figure": 3,
    }


def test_subgroups_share_an_axis_and_small_ones_have_no_interval() -> None:
    rows = subgroup_rows(
        {
            "institution": {"CS": group(0.8, 0.7, 0.9), "DU": group(0.6)},
            "missing": {"none": group(0.7, 0.6, 0.8)},
        }
    )
    assert [(r["kind"], r["name"]) for r in rows] == [("Institution", "CS"), ("Institution", "DU")]
    assert "axis from 0.6 to 0.9" in rows[0]["bar"]
    assert rows[1]["bar"] is None
    assert subgroup_rows({}) == []
