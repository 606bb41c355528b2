"""A tiny config, and ``bts`` as a user calls it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CONFIG = """
data: {source: raw, shards: packed, image_size: 32}
phantom: {patients: 10, size: 32, min_slices: 4, max_slices: 6}
split: {kind: patient, train: 0.6, val: 0.2, test: 0.2}
pack: {samples_per_shard: 16}
model: {kind: unet, features: 4, depth: 3, norm: group}
optim: {kind: adamw, lr: 0.005, ema: 0.9}
train: {epochs: 2, global_batch: 8, precision: fp32}
score: {bootstrap: 100}
tune:
  trials: 2
  epochs: 1
  space: {optim.lr: {loguniform: [0.001, 0.01]}}
cluster: {workers: 2}
run: {name: tiny}
"""

Bts = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def bts() -> Bts:
    """Run a command line of ``bts`` (or of another installed ``program``) in a folder; it must exit with ``code``."""

    def run(
        folder: Path, *arguments: str, code: int = 0, program: str = "bts"
    ) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name(program)), *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, bts: Bts) -> Path:
    """A folder with ``tiny.yaml`` and a phantom in ``raw/``."""
    place = tmp_path_factory.mktemp("job")
    (place / "tiny.yaml").write_text(CONFIG)
    bts(place, "synth", "--config", "tiny.yaml")
    return place
