import base64
import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import yaml

from bts_dist.cohort import Cohort, compare, spreads
from bts_dist.report import RunRecord, write_report
from shards import picture
from shards.errors import InputError

VOID = {"meta", "br", "img", "link", "input", "hr"}
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


class Page(HTMLParser):
    """A page as elements (tag, attributes), visible text and the faults of its nesting."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.faults: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.data: list[tuple[str, str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data):
        self.data.append((self.open[-1] if self.open else "", data))

    def text(self, *tags: str) -> list[str]:
        return [data.strip() for tag, data in self.data if tag in tags and data.strip()]

    def count(self, tag: str) -> int:
        return sum(found == tag for found, _ in self.elements)


def metric(mean, low=None, high=None, *, median=None, n=3, rule="both empty = 1"):
    low, high = low if low is not None else mean - 0.03, high if high is not None else mean + 0.02
    return {"mean": mean, "median": median, "low": low, "high": high, "n": n, "rule": rule}


def patient(name="TCGA_CS_4941", institution="CS", dice=0.8, **values):
    row = {"patient": name, "institution": institution, "slices": 23, "tumour_slices": 15, "dice": dice}
    row |= {"iou": dice / (2 - dice), "tp": 12_345, "fp": 210, "fn": 300, "hd95": 4.25, "surface_dice": 0.77}
    return row | values


@pytest.fixture
def run() -> RunRecord:
    metrics = {
        "dice/patient": metric(0.871, median=0.902),
        "iou/patient": metric(0.779),
        "dice/slice": metric(0.955, 0.94, 0.96),
        "iou/slice": metric(0.931),
        "dice/slice_positive": metric(0.842),
        "iou/slice_positive": metric(0.751),
        "dice/pooled": metric(0.9123),
        "iou/pooled": metric(0.8387, 0.80, 0.86),
        "hd95/patient": metric(5.43, 3.1, 8.2, rule="patients with a surface in both masks"),
        "surface_dice/patient": metric(0.888),
    }
    patients = [
        patient("TCGA_CS_4941", "CS", 0.94),
        patient("TCGA_DU_5851", "DU", 0.61, hd95=None),
        patient("TCGA_HT_7473", "HT", 0.88, slices=30, tumour_slices=4),
    ]
    epochs = [
        {"epoch": epoch, "train/loss": 1 / epoch, "val/dice/patient": 0.5 + epoch / 20, "lr": 1e-3 / epoch}
        | {"time/epoch_s": 90.0, "samples_per_s": 41.0}
        for epoch in (1, 2, 3)
    ]
    data = {"patients": 3, "slices": 76, "shards": "s3://bucket/lgg", "id": "b5b1f2d0"}
    score = {
        "metrics": metrics,
        "patients": patients,
        "threshold": 0.45,
        "checkpoint": "epoch-003",
        "data": data,
    }
    overlays = [
        ("TCGA_CS_4941", 7, 0.94, PNG),
        ("TCGA_DU_5851", 9, 0.61, PNG),
        ("TCGA_HT_7473", 11, 0.88, PNG),
    ]
    trials = [
        {
            "trial": "t0",
            "optim.lr": 3e-4,
            "schedule.kind": "cosine",
            "dice": 0.79,
            "epochs": 1,
            "status": "stopped",
        },
        {
            "trial": "t1",
            "optim.lr": 1e-3,
            "schedule.kind": "step",
            "dice": 0.85,
            "epochs": 5,
            "status": "finished",
        },
    ]
    return RunRecord("lgg-3f2a", {"optim": {"lr": 1e-3}}, epochs, score, overlays, trials)


def written(run: RunRecord, folder) -> str:
    return write_report(run, folder / "report.html").read_text(encoding="utf-8")


def with_score(run: RunRecord, **parts) -> RunRecord:
    return replace(run, score=dict(run.score) | parts)


def test_the_page_is_the_file_asked_for(run, tmp_path):
    dest = tmp_path / "new" / "folder" / "page.html"
    assert write_report(run, dest) == dest
    assert dest.read_text(encoding="utf-8").startswith("<!doctype html>")


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


def test_the_page_is_well_formed(run, tmp_path):
    page = Page(written(run, tmp_path))
    assert page.faults == []
    assert page.open == []


def test_the_page_refers_to_nothing_outside_itself(run, tmp_path):
    html = written(run, tmp_path)
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html
    assert "@import" not in html
    page = Page(html)
    addresses = [
        value
        for _, attrs in page.elements
        for name, value in attrs.items()
        if name in {"src", "href", "data", "srcset"}
    ]
    assert len(addresses) == len(run.overlays)
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    assert {tag for tag, _ in page.elements}.isdisjoint({"link", "iframe", "object", "embed", "base"})


def test_images_are_the_overlays_bytes(run, tmp_path):
    sources = [attrs["src"] for tag, attrs in Page(written(run, tmp_path)).elements if tag == "img"]
    assert {base64.b64decode(source.partition(",")[2]) for source in sources} == {PNG}


def test_hostile_names_stay_text(run, tmp_path):
    hostile = """</title></script><script>alert(1)</script><img src=x onerror="alert(2)">'"""
    expected = Page(written(run, tmp_path))
    worse = replace(
        with_score(run, patients=[patient(hostile, hostile), *run.score["patients"][1:]], checkpoint=hostile),
        name=hostile,
        config={hostile: hostile},
        overlays=[(hostile, 7, 0.94, PNG), *run.overlays[1:]],
        trials=[{hostile: hostile, **run.trials[0]}, run.trials[1]],
    )
    page = Page(written(worse, tmp_path))
    assert page.faults == []
    for tag in ("script", "img"):
        assert page.count(tag) == expected.count(tag)
    assert not [attrs for _, attrs in page.elements if "onerror" in attrs]
    assert hostile in page.text("h1")
    assert hostile in page.text("th")


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


def test_no_score_says_what_to_run(run, tmp_path):
    with pytest.raises(InputError, match=r"lgg-3f2a has no score yet.*bts score lgg-3f2a"):
        write_report(replace(run, score=None), tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        ({"patients": []}, "no patients"),
        ({"metrics": {}, "patients": []}, "no metrics and patients"),
        ({"metrics": {"dice/slice": metric(0.9)}}, "no metric dice/patient"),
    ],
)
def test_a_broken_score_is_named(run, tmp_path, parts, what):
    with pytest.raises(InputError, match=rf"{what}.*bts score"):
        write_report(with_score(run, **parts), tmp_path / "report.html")


def test_sections_without_matter_are_absent(run, tmp_path):
    optional = {"Training", "Search", "Slices"}
    assert optional <= set(Page(written(run, tmp_path)).text("h2"))
    bare = Page(written(replace(run, epochs=[], trials=[], overlays=[]), tmp_path))
    assert optional.isdisjoint(bare.text("h2"))
    assert bare.faults == []
    assert bare.count("img") == 0


def test_a_missing_distance_is_a_dash_and_sorts_as_none(run, tmp_path):
    html = written(run, tmp_path)
    assert re.search(r'TCGA_DU_5851</th>.*?data-v="None">—</td>', html, re.DOTALL)
    metrics = dict(run.score["metrics"]) | {
        "hd95/patient": metric(0) | {"mean": None, "low": None, "high": None}
    }
    page = Page(written(with_score(run, metrics=metrics), tmp_path))
    assert "—\u200a–\u200a—" in page.text("td")


def test_patients_come_worst_first_and_images_worst_then_best(run, tmp_path):
    page = Page(written(run, tmp_path))
    names = [text for text in page.text("th") if text.startswith("TCGA")]
    assert names == ["TCGA_DU_5851", "TCGA_HT_7473", "TCGA_CS_4941"]
    assert page.text("figcaption") == [
        "TCGA_DU_5851, slice\xa09",
        "TCGA_HT_7473, slice\xa011",
        "TCGA_CS_4941, slice\xa07",
    ]


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


def test_trials_come_best_first(run, tmp_path):
    cells = Page(written(run, tmp_path)).text("td")
    assert cells.index("t1") < cells.index("t0")


def test_the_legend_has_the_outlines_colours(run, tmp_path):
    styles = [
        attrs.get("style")
        for _, attrs in Page(written(run, tmp_path)).elements
        if attrs.get("class") == "key"
    ]
    assert styles == [f"background: rgb{picture.TRUTH}", f"background: rgb{picture.PREDICTION}"]


def test_config_and_provenance_are_whole(run, tmp_path):
    page = Page(written(run, tmp_path))
    assert yaml.safe_load("".join(page.text("pre"))) == run.config
    assert dict(zip(page.text("dt"), page.text("dd"), strict=True)) == {
        "run": "lgg-3f2a",
        "checkpoint": "epoch-003",
        "threshold": "0.45",
        "data: patients": "3",
        "data: slices": "76",
        "data: shards": "s3://bucket/lgg",
        "data: id": "b5b1f2d0",
    }


def test_training_is_summed_up(run, tmp_path):
    text = " ".join(Page(written(run, tmp_path)).text("p"))
    assert "3 epochs in 4.5 minutes, 41 samples a second" in text
    assert "The dotted rule marks epoch 3" in text


def test_where_the_time_went_has_a_table_of_its_own(run, tmp_path):
    assert "Where the time went" not in Page(written(run, tmp_path)).text("summary")
    account = {"share/data": 0.0125, "share/compute": 0.9375, "mfu": 0.3125}
    page = Page(written(replace(run, epochs=[{**row, **account} for row in run.epochs]), tmp_path))
    assert {"Every epoch", "Where the time went"} <= set(page.text("summary"))
    headings = page.text("th")
    assert [headings.count(name) for name in ("share/data", "share/compute", "mfu")] == [1, 1, 1]
    assert page.text("td").count("0.9375") == 3


SLICE = {"slice": 7, "image": "UklGRg==", "truth": [1, 2], "prediction": [], "tp": 0, "fp": 0, "fn": 2}


def slices_of(name: str) -> dict:
    return {"patient": name, "height": 2, "width": 2, "slices": [SLICE]}


def viewer_data(html: str) -> dict:
    found = re.search(r'<script type="application/json" id="slices">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_viewer_holds_every_patient_worst_first(run, tmp_path):
    names = ["TCGA_CS_4941", "TCGA_DU_5851", "TCGA_HT_7473", "TCGA_NOT_SCORED"]
    html = written(replace(run, slices=[slices_of(name) for name in names]), tmp_path)
    data = viewer_data(html)
    worst_first = ["TCGA_DU_5851", "TCGA_HT_7473", "TCGA_CS_4941"]
    assert data["patients"] == [slices_of(name) for name in worst_first]
    assert data["colours"]["truth"] == list(picture.TRUTH)
    page = Page(html)
    assert page.faults == []
    assert [text for text in page.text("span") if text in names] == worst_first
    # Without scripts the worst and the best are still there.
    assert html.index("<noscript>") < html.index("<img") < html.rindex("<img") < html.index("</noscript>")


def test_without_slices_there_is_no_viewer(run, tmp_path):
    html = written(run, tmp_path)
    assert 'id="slices"' not in html
    assert "<noscript>" not in html
    assert Page(html).count("img") == len(run.overlays)


def test_a_hostile_patient_stays_text_in_the_viewer(run, tmp_path):
    hostile = "</script><img src=x onerror=alert(1)>"
    worse = with_score(run, patients=[patient(hostile), *run.score["patients"][1:]])
    html = written(replace(worse, slices=[slices_of(hostile)]), tmp_path)
    assert viewer_data(html)["patients"][0]["patient"] == hostile
    page = Page(html)
    assert page.faults == []
    assert page.count("img") == len(run.overlays)


def test_a_page_that_would_be_too_large_says_whom_it_leaves_out(run, tmp_path, monkeypatch):
    monkeypatch.setattr("bts_dist.gallery.PAGE_BYTES", 2 * len(SLICE["image"]))
    html = written(replace(run, slices=[slices_of(p["patient"]) for p in run.score["patients"]]), tmp_path)
    assert [each["patient"] for each in viewer_data(html)["patients"]] == ["TCGA_DU_5851", "TCGA_HT_7473"]
    assert "Left out for the size of the page: 1 with the highest Dice" in html


def test_a_score_of_patients_seen_in_training_has_a_banner_and_a_title(run, tmp_path):
    clean = written(run, tmp_path)
    assert "not a result" not in clean
    assert 'role="alert"' not in clean
    leak = "slices of these patients were trained on: not a result (all of them)"
    page = Page(written(with_score(run, leak=leak), tmp_path))
    assert page.faults == []
    assert page.count("p") > 0
    assert ("p", {"class": "refused", "role": "alert"}) in page.elements
    assert any(text.startswith("Slices of these patients were trained on: not") for text in page.text("p"))
    assert page.text("title")[0].startswith("LEAK, not a result: ")
    assert not any(text.endswith("reached") for text in page.text("div"))
    assert sum("not judged" in text for text in page.text("div")) == 2


def test_what_differs_from_the_training_patients_is_shown(run, tmp_path):
    title = "What differs from the training patients"
    assert title not in written(run, tmp_path)
    one, other = (
        Cohort(3, side, side, {site: 3}, spreads([{"slices": n * factor} for n in (20.0, 22.0, 24.0)]))
        for side, site, factor in ((256, "CS", 1), (240, "<X>", 4))
    )
    page = Page(written(with_score(run, differs=compare(one, other)), tmp_path))
    assert page.faults == []
    assert title in page.text("h2")
    assert {"Slices per patient", "Institutions", "Pixels of a slice"} <= set(page.text("th"))
    cells = page.text("td")
    assert {"240 × 240", "88.0 ± 6.53", "3 patients from unseen ones", "<X> 3"} <= set(cells)
    assert cells.count("large") == 3
    unknown = Page(written(with_score(run, differs=compare(None, other)), tmp_path))
    assert unknown.faults == []
    assert any("does not say what its training patients were like" in text for text in unknown.text("p"))
    assert "large" not in unknown.text("td")


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


def test_what_was_chosen_on_validation_patients_is_a_table(run: RunRecord, tmp_path) -> None:
    rows = [
        {"choice": "mirror", "from": "not mirrored", "to": "mirrored", "dice/patient": 0.81, "gain": -0.0123}
        | {"low": -0.03, "high": 0.01, "taken": False},
        {"choice": "components", "from": "all", "to": "largest", "dice/patient": 0.83, "gain": 0.0077}
        | {"low": 0.0, "high": 0.02, "taken": True},
    ]
    found = {
        "threshold": 0.4,
        "mirror": False,
        "components": "largest",
        "members": [{"uri": "x", "id": "0"}],
        "patients": 9,
    }
    page = written(with_score(run, inference={**found, "rows": rows}), tmp_path)
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).replace("\u200a", " ").split())
    assert "How it predicts" in text
    assert "Threshold 0.4, not mirrored, mean of 2 checkpoints, largest component only" in text
    assert "mirror not mirrored mirrored 0.8100 −0.0123 −0.0300 – 0.0100 no" in text
    assert "components all largest 0.8300 0.0077 0.0000 – 0.0200 yes" in text
    few = [row | {"low": None, "high": None} for row in rows]
    assert "—" in written(with_score(run, inference={**found, "rows": few}), tmp_path)
    assert "How it predicts" not in written(run, tmp_path)
    assert "How it predicts" not in written(with_score(run, inference={**found, "rows": []}), tmp_path)
