"""The benchmarks of packing and of encodings on small phantoms, without the peers that need packages of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script: str, *arguments: str | Path) -> None:
    done = subprocess.run([sys.executable, BENCHMARKS / script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_packers_are_compared_on_the_same_slices(tmp_path: Path) -> None:
    output = tmp_path / "pack.md"
    run("pack.py", "--quick", "--only", "ours", "webdataset", "--output", output)
    found = json.loads(output.with_suffix(".json").read_text())
    measured = {(entry["packer"], entry["encoding"]): entry for entry in found["measured"]}
    assert set(measured) == {(p, e) for p in ("ours", "webdataset") for e in ("png", "raw")}
    assert all(entry["slices_per_s"] >= entry["verified_slices_per_s"] > 0 for entry in measured.values())
    for packer in ("ours", "webdataset"):
        sizes = [measured[packer, encoding]["bytes"] for encoding in ("png", "raw")]
        assert sizes[0] < sizes[1] > found["slices"] * 64 * 64 * 3
    (memory,) = found["memory"]
    assert memory["samples"] == 600
    assert memory["peak_mib"] > memory["before_mib"] > 0
    page = output.read_text()
    assert page.index("## Ratios") < page.index("## Slices per second") < page.index("## Memory")


def test_encodings_are_compared_at_each_speed(tmp_path: Path, phantom_source: Path) -> None:
    output = tmp_path / "encodings.md"
    run("encoding.py", phantom_source, "--slices", "3", "--rounds", "1", "--output", output)
    page = output.read_text()
    assert page.count("\n| `png`: ours |") == page.count("\n| `raw`: .npy |") == 2
    assert "`png` beats `raw` below" in page
    rows = [line.split("|")[2] for line in page.splitlines() if line.startswith("| `raw`")]
    assert float(rows[0]) == pytest.approx((64 * 64 * 3 + 128) / 1024, abs=0.1)


@pytest.fixture
def phantom_source(tmp_path: Path) -> Path:
    from shards.config import PhantomConfig
    from shards.phantom import generate

    generate(PhantomConfig(patients=2, size=64, min_slices=3, max_slices=3), tmp_path / "phantom", workers=1)
    return tmp_path / "phantom"
