"""The loader benchmark's checksum and its page, from figures made up so that the ratios are known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))


def test_checksum_knows_every_pixel_but_no_order() -> None:
    from contenders.contract import checksum

    rng = np.random.default_rng(0)
    samples = [(rng.integers(0, 256, (4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)) for _ in range(3)]
    right = checksum(samples)
    assert checksum(reversed(samples)) == right
    assert checksum(samples[:2]) != right
    assert checksum([*samples, samples[0]]) != right
    samples[1][1][2, 3] = 1
    assert checksum(samples) != right


def _entry(row: str, turn: int, cold: float, warm: float, processes: int = 2) -> dict[str, Any]:
    figures = {"cold": cold, "warm": warm, "memory": 2**20}
    return {"row": row, "storage": "local", "processes": processes, "turn": turn, **figures}


def test_a_ratio_is_to_the_fastest_comparable_row_of_the_same_turn() -> None:
    from loader_report import report

    names = ("ours-png", "wds-png", "mds-png", "lit-raw")
    measured = [
        *(_entry("ours-png", turn, 300, cold) for turn, cold in enumerate((90, 100, 80))),
        *(_entry("wds-png", turn, 100, warm) for turn, warm in enumerate((100, 200, 160))),
        *(_entry("mds-png", turn, 200, 10) for turn in range(3)),
        *(_entry("lit-raw", turn, 900, 900) for turn in range(3)),
        *(_entry(name, turn, 240, 20, processes=1) for name in names for turn in range(3)),
    ]
    found = {
        "about": "- Machine: none",
        "source": "generated phantoms",
        "slices": 10,
        "shape": [8, 8, 3],
        "disk_bytes": dict.fromkeys(names, 3 * 2**20),
        "measured": measured,
    }
    (line,) = (line for line in report(found).splitlines() if line.startswith("| PNG decoded in every epoch"))
    cold, warm = line.strip("| ").split(" | ")[-2:]
    # With two processes Streaming delivers 200 a second, with one 240, as webdataset does: the first of these is named.
    assert cold == "**1.25** (1.25–1.25), webdataset, our PNG shards, 1 proc."
    assert warm == "0.50 (0.50–0.90), webdataset, our PNG shards"
