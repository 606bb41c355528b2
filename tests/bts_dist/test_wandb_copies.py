"""The files of a W&B record are copied to a run on object storage as they grow."""

import time
from pathlib import Path
from typing import Any

import numpy as np
from bucket import Bucket

from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.overlays import SliceOverlay
from bts_dist.track import open_tracker


def test_only_what_changed_since_is_uploaded(config: Config, tmp_path: Path) -> None:
    class Counted(Bucket):
        def put(self, key: str, *args: Any, **options: Any) -> None:
            put.append(key)
            super().__getattr__("put")(key, *args, **options)

    put: list[str] = []
    picture = SliceOverlay("a patient", 7, np.zeros((8, 8, 3), np.uint8), *np.zeros((2, 8, 8), bool))
    run, node = Counted(tmp_path / "bucket"), tmp_path / "node"
    config = with_overrides(config, {"track.wandb": "offline"})
    with open_tracker(config, run, node, step=0, wandb_id="id", published=lambda: 9) as tracker:
        tracker.images(1, [picture])
        tracker.log("step", 1, {"loss": 1.0})
        log = settled(node)
        tracker.flush()
        first = {key for key in put if key.startswith("wandb/")}
        assert any(key.endswith(".png") for key in first)
        put.clear()
        tracker.flush()
        assert [key for key in put if key.startswith("wandb/")] == []
        tracker.log("step", 2, {"loss": 0.5})
        while settled(node) == log:
            time.sleep(0.1)
        tracker.flush()
        assert [key for key in put if key.endswith(".wandb")] != []
        assert not any(key.endswith(".png") for key in put)
    [key] = [key for key in first if key.endswith("/run-id.wandb")]
    assert run.get(key) == settled(node), "its end is uploaded"


def settled(node: Path) -> bytes:
    """A W&B log, once W&B's process has written for longer than it keeps rows back nothing."""
    [log] = [path for path in node.glob("wandb/*/run-id.wandb") if not path.parent.is_symlink()]
    files = [path for path in log.parent.rglob("*") if path.is_file()]
    while time.time() - max(path.stat().st_mtime for path in files) < 1.5:
        time.sleep(0.1)
    return log.read_bytes()
