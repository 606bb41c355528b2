"""What differs from the training patients, as a page shows it."""

import pytest
from pages import Page, run_record, with_score, written

from bts_dist.cohort import Cohort, compare, spreads
from bts_dist.cohort_table import lines, rows
from bts_dist.report import RunRecord


@pytest.fixture
def run() -> RunRecord:
    return run_record()


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
    # Columns sort by the numbers that the words tell of.
    numbers = [attrs["data-v"] for tag, attrs in page.elements if tag == "td" and "data-v" in attrs]
    for number in ("65536", "57600", "22.0", "88.0"):
        assert number in numbers
    unknown = Page(written(with_score(run, differs=compare(None, other)), tmp_path))
    assert unknown.faults == []
    assert any("does not say what its training patients were like" in text for text in unknown.text("p"))
    assert "large" not in unknown.text("td")


def test_rows_have_the_numbers_that_their_words_tell_of():
    one = Cohort(3, 256, 240, {"CS": 2, "DU": 1}, spreads([{"slices": n} for n in (20.0, 22.0, 24.0)]))
    other = Cohort(2, 256, 240, {"CS": 2}, spreads([{"slices": n} for n in (22.0, 24.0)]))
    differs = compare(one, other)
    found = {row.line[0]: (row.training, row.scored, row.difference) for row in rows(differs)}
    assert found["patients"] == (3, 2, None)
    assert found["institutions"] == (2, 1, None)
    assert found["pixels of a slice"] == (256 * 240, 256 * 240, None)
    training, scored, difference = found["slices per patient"]
    assert (training, scored) == (22, 23)
    assert difference == differs["differences"]["slices"]["smd"] > 0
    unknown = {row.line[0]: (row.training, row.difference) for row in rows(compare(None, other))}
    assert set(unknown.values()) == {(None, None)}
    assert lines(differs) == [row.line for row in rows(differs)]
