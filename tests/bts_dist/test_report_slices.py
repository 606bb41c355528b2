"""The page's pictures: the viewer of all slices, and the worst and best patients without it."""

import base64
import json
import re
from dataclasses import replace

import pytest
from pages import PNG, Page, patient, run_record, with_score, written

from bts_dist.report import RunRecord
from shards import picture

SLICE = {"slice": 7, "image": "UklGRg==", "truth": [1, 2], "prediction": [], "tp": 0, "fp": 0, "fn": 2}


@pytest.fixture
def run() -> RunRecord:
    return run_record()


def test_images_are_the_overlays_bytes(run, tmp_path):
    sources = [attrs["src"] for tag, attrs in Page(written(run, tmp_path)).elements if tag == "img"]
    assert {base64.b64decode(source.partition(",")[2]) for source in sources} == {PNG}


def test_patients_come_worst_first_and_images_worst_then_best(run, tmp_path):
    page = Page(written(run, tmp_path))
    names = [text for text in page.text("th") if text.startswith("TCGA")]
    assert names == ["TCGA_DU_5851", "TCGA_HT_7473", "TCGA_CS_4941"]
    assert page.text("figcaption") == [
        "TCGA_DU_5851, slice\xa09",
        "TCGA_HT_7473, slice\xa011",
        "TCGA_CS_4941, slice\xa07",
    ]


def test_the_legend_has_the_outlines_colours(run, tmp_path):
    styles = [
        attrs.get("style")
        for _, attrs in Page(written(run, tmp_path)).elements
        if attrs.get("class") == "key"
    ]
    assert styles == [f"background: rgb{picture.TRUTH}", f"background: rgb{picture.PREDICTION}"]


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
