"""The page of a run: one file, whole, that refers to nothing and lets no name become markup."""

from dataclasses import replace

import pytest
import yaml
from pages import PNG, Page, metric, patient, run_record, with_score, written

from bts_dist.report import RunRecord, write_report
from shards.errors import InputError


@pytest.fixture
def run() -> RunRecord:
    return run_record()


def test_the_page_is_the_file_asked_for(run, tmp_path):
    dest = tmp_path / "new" / "folder" / "page.html"
    assert write_report(run, dest) == dest
    assert dest.read_text(encoding="utf-8").startswith("<!doctype html>")


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


def test_trials_come_best_first(run, tmp_path):
    cells = Page(written(run, tmp_path)).text("td")
    assert cells.index("t1") < cells.index("t0")


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
