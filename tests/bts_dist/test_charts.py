import math

import pytest

from bts_dist.charts import best_epoch, is_number, patient_charts, points, search_chart, training_charts

EPOCHS = [
    {"epoch": 1, "train/loss": 0.9, "lr": 1e-3, "val/dice/patient": 0.61},
    {"epoch": 2, "train/loss": 0.5, "lr": 5e-4},
    {"epoch": 3, "train/loss": 0.4, "lr": 1e-4, "val/dice/patient": 0.74},
    {"epoch": 4, "train/loss": 0.3, "lr": 1e-5, "val/dice/patient": 0.74},
]


def patient(name, institution, dice, tp=90, fn=10):
    return {"patient": name, "institution": institution, "dice": dice, "tp": tp, "fn": fn}


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, True), (0.5, True), (None, False), (math.nan, False), (True, False), ("1", False)],
)
def test_is_number(value, expected):
    assert is_number(value) is expected


def test_points_leave_out_rows_without_either_column():
    assert points(EPOCHS, "epoch", "val/dice/patient") == [(1, 0.61), (3, 0.74), (4, 0.74)]


def test_best_epoch_is_the_first_of_the_highest():
    assert best_epoch(EPOCHS) == 3
    assert best_epoch([{"epoch": 1, "train/loss": 1.0}]) is None


def test_training_charts_draw_what_the_epochs_tell():
    charts = dict(training_charts(EPOCHS))
    assert list(charts) == ["Loss", "Validation", "Learning rate"]
    assert charts["Loss"].count("<polyline") == 1
    assert "Dice, slice" not in charts["Validation"]
    assert [title for title, _ in training_charts([{"epoch": 1, "lr": 0.1}])] == ["Learning rate"]
    assert training_charts([]) == []


def test_search_chart_tells_the_best_and_those_cut_short():
    trials = [
        {"lr": 1e-3, "dice": 0.8, "epochs": 5},
        {"lr": 2e-3, "dice": 0.9, "epochs": 5},
        {"lr": 3e-3, "dice": 0.7, "epochs": 1},
        {"lr": 4e-3, "dice": None, "epochs": 1},
    ]
    ((_, svg),) = search_chart(trials, "lr", "dice")
    assert [svg.count(f'class="dot {look}"') for look in ("full", "best", "open")] == [1, 1, 1]
    assert "<title>lr: 0.002\ndice: 0.9\nepochs: 5</title>" in svg


def test_a_search_without_results_has_no_chart():
    assert search_chart([{"lr": 1e-3, "dice": None}], "lr", "dice") == []


def test_patient_charts_group_by_institution_and_leave_out_the_unscored():
    patients = [
        patient("a", "DU", 0.9),
        patient("b", "CS", 0.8),
        patient("c", "DU", 0.7),
        patient("d", "HT", None),
    ]
    charts = dict(patient_charts(patients))
    strips = charts["By institution"]
    assert strips.index("CS (1)") < strips.index("DU (2)")
    assert "HT" not in strips
    assert charts["By tumour size"].count("<circle") == 3
    assert "a: 0.900\n100 px of tumour" in charts["By tumour size"]


def test_patients_without_tumour_have_no_size():
    assert [title for title, _ in patient_charts([patient("a", "DU", 1.0, tp=0, fn=0)])] == ["By institution"]
