"""What people see of a run is all of its record, each row once, whatever happens to the file."""

import json
from pathlib import Path
from typing import Any

from bts_dist.account import TRAINING
from cluster.console import Growing, account_line


def lines(*times: float) -> str:
    return "".join(
        json.dumps({"kind": "note", "step": 0, "time": t, "text": f"at {t}"}) + "\n" for t in times
    )


def replace(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


def seen(record: Growing) -> list[float]:
    return [row["time"] for row in record.new_rows()]


def test_only_what_is_new_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(1, 2))
    record = Growing(path)
    assert seen(record) == []
    with path.open("a") as file:
        file.write(lines(3, 3, 4) + '{"kind": "no')
        file.flush()
        assert seen(record) == [3, 3, 4]
        file.write('te", "step": 0, "time": 5}\n')
    assert seen(record) == [5]


def test_a_resumed_run_replaces_its_record(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    record = Growing(path)
    assert seen(record) == []
    path.write_text(lines(1, 2, 3, 4))
    assert seen(record) == [1, 2, 3, 4]
    # It keeps two rows, and has grown beyond the old one's length before the next look.
    replace(path, lines(1, 2, 5, 6, 7))
    assert seen(record) == [5, 6, 7]
    replace(path, lines(1))
    assert seen(record) == []


def row(**figures: Any) -> dict[str, Any]:
    shares = {f"share/{activity}": 0.0 for activity in TRAINING}
    steady = {"straggler/rank": 3, "straggler/wait": 0.04, "flops_per_s": 12.46e9, "mfu": 0.02798}
    return {**shares, **steady, **figures}


def test_an_epochs_account_is_one_line() -> None:
    line = account_line(row(**{"share/data": 0.0081, "share/compute": 0.7276, "share/exchange": 0.175}))
    assert line == (
        "data 1%  augment 0%  compute 73%  exchange 18%  optimizer 0%  checkpoint 0%  other 0%  "
        "12.5 GFLOP/s (2.8% of peak)"
    )


def test_a_rank_that_others_wait_for_is_named() -> None:
    line = account_line(row(**{"share/exchange": 0.31, "straggler/wait": 0.29}))
    assert "exchange 31% (29% waiting for rank 3)" in line
