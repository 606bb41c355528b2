"""The scoring benchmark: both contenders compute the same figures, and the arithmetic of how much faster one is."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_both_are_asked_for_the_same_figures() -> None:
    import scoring

    truth = np.zeros((4, 24, 24), bool)
    truth[1:3, 8:16, 8:16] = True
    for prediction in scoring.changes(truth).values():
        theirs, ours = scoring.by_monai(prediction, truth), scoring.by_us(prediction, truth)
        assert list(ours) == list(theirs)
        assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=1e-5)


def test_figures_that_differ_stop_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    import scoring

    truth = np.zeros((4, 24, 24), bool)
    truth[1:3, 8:16, 8:16] = True
    pair = scoring.Pair("P", "moved", scoring.changes(truth)["moved by 3.6 voxels"], truth)
    monkeypatch.setattr(scoring, "by_us", lambda *masks: scoring.by_monai(*masks) | {"asd": 1.0})
    with pytest.raises(AssertionError, match=r"P, moved: asd is 1\.0, by MONAI"):
        scoring.measure(pair, 1)


def test_the_ratio_is_of_sums() -> None:
    import scoring

    mask = np.zeros((1, 2, 2), bool)
    times = [
        scoring.Times(scoring.Pair("A", "moved", mask, mask), 0.9, 0.1, 0.002),
        scoring.Times(scoring.Pair("B", "swollen", mask, mask), 0.3, 0.1, 0.004),
    ]
    page = scoring.report(times, "two", 3)
    assert "**Ours is 6.0 times as fast as MONAI**" in page
    assert "| **all 2** | 600 | 100.0 | 6.0 | 3.0 – 9.0 | 3.0 |" in page
    assert "| swollen | 300 | 100.0 | 3.0 | 3.0 – 3.0 | 4.0 |" in page


@pytest.mark.e2e
def test_a_page_is_written(tmp_path: Path) -> None:
    output = tmp_path / "scoring.md"
    command = [
        sys.executable,
        BENCHMARKS / "scoring.py",
        "--patients",
        "1",
        "--repeats",
        "1",
        "--output",
        output,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert output.read_text().count("\n| ") == 6  # headings, all, and each of four
