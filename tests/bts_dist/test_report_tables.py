"""The page's tables of a score: claims, metrics, patients, folds, groups of patients."""

import re

import pytest
from pages import Page, metric, run_record, with_score, written

from bts_dist.report import RunRecord


@pytest.fixture
def run() -> RunRecord:
    return run_record()


def test_every_metric_and_patient_is_there(run, tmp_path):
    page = Page(written(run, tmp_path))
    assert set(page.text("code")) == set(run.score["metrics"])
    means = page.text("td")
    for key, row in run.score["metrics"].items():
        assert f"{row['mean']:.{1 if key.startswith('hd95') else 3}f}" in means
        assert row["rule"] in means
    for row in run.score["patients"]:
        assert row["patient"] in page.text("th")
        assert f"{row['dice']:.3f}" in means


def test_verdicts_name_claim_and_shortfall(run, tmp_path):
    verdicts = [text for text in Page(written(run, tmp_path)).text("div") if text.startswith("Claim")]
    assert verdicts == ["Claim of 0.97 not reached, 0.015 short", "Claim of 0.83 reached"]


def test_an_interval_around_the_claim_is_called_unsettled(run, tmp_path):
    notes = [text for text in Page(written(run, tmp_path)).text("p") if text.startswith("95 % interval")]
    assert ["cannot settle" in note for note in notes] == [False, True]


def test_a_score_may_name_its_own_claim(run, tmp_path):
    page = Page(written(with_score(run, claim={"dice/patient": 0.871}), tmp_path))
    assert [text for text in page.text("div") if text.startswith("Claim")] == ["Claim of 0.871 reached"]
    assert not [text for text in page.text("p") if "No single aggregation" in text]


def test_the_identity_is_worked_out(run, tmp_path):
    text = " ".join(" ".join(Page(written(run, tmp_path)).text("p")).split())
    assert "a Dice of 0.97 is an IoU of 0.942" in text
    assert "an IoU of 0.83 is a Dice of 0.907" in text
    assert "Here 42 of 76 slices hold no tumour" in text


def test_a_missing_distance_is_a_dash_and_sorts_as_none(run, tmp_path):
    html = written(run, tmp_path)
    assert re.search(r'TCGA_DU_5851</th>.*?data-v="None">—</td>', html, re.DOTALL)
    metrics = dict(run.score["metrics"]) | {
        "hd95/patient": metric(0) | {"mean": None, "low": None, "high": None}
    }
    page = Page(written(with_score(run, metrics=metrics), tmp_path))
    assert "—\u200a–\u200a—" in page.text("td")


def test_folds_have_a_column_and_a_table_where_there_are_any(run, tmp_path):
    page = Page(written(run, tmp_path))
    assert "Fold" not in page.text("th")
    assert "Fold by fold" not in page.text("h2")
    folds = [
        {"fold": n, "patients": ["x"] * (n + 1), "threshold": 0.4, "checkpoint": f"step-{n}"}
        | {"dice/patient": 0.8125 + n / 8, "iou/pooled": 0.5}
        for n in range(2)
    ]
    over = {"dice/patient": {"mean": 0.875, "std": 0.0884}, "iou/pooled": {"mean": 0.5, "std": 0.0}}
    patients = [{"patient": row["patient"], "fold": 1, **row} for row in run.score["patients"]]
    html = written(with_score(run, folds=folds, over_folds=over, patients=patients), tmp_path)
    page = Page(html)
    assert page.faults == []
    assert "Fold by fold" in page.text("h2")
    assert page.text("th").count("Fold") == 2
    assert {"0.812", "0.938", "0.875 ± 0.088", "0.500 ± 0.000", "step-1"} <= set(page.text("td"))
    # The mean is no row that could be sorted among the folds.
    assert html.index("step-1") < html.index("<tfoot>") < html.index("0.875 ±")
    # A score of a version that had no such table is shown as it is.
    assert "Fold by fold" not in Page(written(with_score(run, folds=folds), tmp_path)).text("h2")


def test_units_and_signed_figures_are_shown(run, tmp_path):
    metrics = dict(run.score["metrics"]) | {
        "hd95/patient": metric(5.43, 3.1, 8.2) | {"unit": "mm"},
        "asd/patient": metric(1.2, 0.8, 1.9) | {"unit": "mm"},
        "surface_dice/patient": metric(0.888) | {"unit": "at 2 mm"},
        "volume_bias/patient": metric(-0.25, -0.4, 0.1) | {"unit": None},
        "volume_error/patient": metric(1.5, 0.2, 4.0) | {"unit": None},
    }
    patients = [row | {"unit": "mm"} for row in run.score["patients"]]
    page = Page(written(with_score(run, metrics=metrics, patients=patients), tmp_path))
    labels = page.text("th")
    assert {"HD95 (mm) per patient, in 3D", "Surface Dice (at 2 mm) per patient, in 3D"} <= set(labels)
    assert "HD95, mm" in labels
    assert "−0.250" in page.text("td")
    # A sign or a figure beyond 1 has an axis of its own, and leaves that of the ratios alone.
    titles = page.text("title")
    assert "-0.250, interval -0.400 to 0.100, on an axis from -0.4 to 0.2" in titles
    assert "1.500, interval 0.200 to 4.000, on an axis from 0 to 4" in titles
    assert "0.871, interval 0.841 to 0.891, on an axis from 0.7 to 1" in titles


def test_subgroups_calibration_and_thresholds_are_shown_where_known(run, tmp_path):
    assert {"Probabilities"}.isdisjoint(Page(written(run, tmp_path)).text("h2"))
    group = {"what": "patients of this institution", "n": 4, "mean": 0.75, "median": 0.7}
    bins = [{"voxels": 90, "mean_probability": 0.25, "tumour_share": 0.125}]
    calibration = {"ece": metric(0.0625), "brier": metric(0.03125), "bins": bins}
    known = with_score(
        run,
        subgroups={
            "institution": {
                "CS": {**group, "low": 0.65, "high": 0.85},
                "DU": {**group, "low": None, "high": None},
            }
        },
        calibration={"all": calibration, "near": None},
        thresholds=[{"threshold": t, "dice/patient": t, "precision/pooled": None} for t in (0.25, 0.5)],
    )
    page = Page(written(known, tmp_path))
    assert page.faults == []
    assert "Probabilities" in page.text("h2")
    assert {"Dice by group of patients", "Calibration by region"} <= set(page.text("caption"))
    assert "Expected calibration error, every voxel" in page.text("th")
    cells = page.text("td")
    assert {"0.0625", "0.0312", "0.650\u200a–\u200a0.850", "patients of this institution"} <= set(cells)
    assert {"Share that is tumour", "Scores by threshold"} <= set(page.text("h3"))
