"""The loader benchmark on small phantoms: ours beside a plain PyTorch Dataset, which needs no peers installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "loader.py"


def test_quick_run_measures_every_row_and_checks_what_it_read(tmp_path: Path) -> None:
    output = tmp_path / "loader.md"
    command = [
        sys.executable,
        BENCHMARK,
        "--quick",
        "--only",
        "ours",
        "tiffs",
        "--processes",
        "2",
        "--output",
        output,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(output.with_suffix(".json").read_text())
    assert [entry["row"] for entry in found["measured"]] == list(found["disk_bytes"])
    assert all(entry["cold"] > 0 and entry["warm"] > 0 and entry["memory"] > 0 for entry in found["measured"])
    page = output.read_text()
    assert page.index("## Ratios") < page.index("## Samples per second") < page.index("## Memory")
    assert "bts-dist, PNG, kept in memory (the default) |" in page
