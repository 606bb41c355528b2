"""What a training on a cluster leaves in its run, beside what it is for."""

from pathlib import Path

import pytest

from bts_dist.compose import with_overrides
from bts_dist.config import Config
from cluster.train_job import clear_ray_storage, ray_storage
from shards.store import LocalStore


@pytest.fixture
def joined(config: Config, tmp_path: Path) -> Config:
    """A run on a cluster that it joins."""
    return with_overrides(
        config, {"cluster.address": "head:6379", "run.dir": str(tmp_path), "run.name": "run"}
    )


def test_rays_notes_go_and_the_run_stays(joined: Config, tmp_path: Path) -> None:
    run = LocalStore("", tmp_path / "run")
    storage = Path(ray_storage(joined, "scratch")).relative_to(run.root).as_posix()
    for key in ("bts-ray-1/checkpoint_manager_snapshot.json", "bts-ray-2/.validate_storage_marker"):
        run.put(f"{storage}/{key}", b"")
    run.put("checkpoints/step-1/files.json", b"{}")
    run.put("raynotes", b"")
    clear_ray_storage(joined)
    assert [entry.key for entry in run.list()] == ["checkpoints/step-1/files.json", "raynotes"]
    assert not (run.root / storage).exists()


def test_a_cluster_of_ones_own_keeps_its_notes_elsewhere(joined: Config, tmp_path: Path) -> None:
    own = with_overrides(joined, {"cluster.address": None})
    assert ray_storage(own, "scratch") == "scratch"
    run = LocalStore("", tmp_path / "run")
    run.put("ray/something", b"")  # of another command's
    clear_ray_storage(own)
    assert run.get("ray/something") == b""
