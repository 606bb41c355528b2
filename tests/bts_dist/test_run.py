"""What a run is called, where it lies, and what it may be resumed with."""

from pathlib import Path

import pytest

from bts_dist import checkpoint, run
from bts_dist.checkpoint import Progress, TrainState
from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.optim import make_optimizer
from bts_dist.unet import UNet
from shards.errors import InputError
from shards.store import LocalStore, open_store

TINY = with_overrides(Config(), {"model.features": 1, "model.depth": 2, "run.name": "r"})


@pytest.fixture
def trained(tmp_path: Path) -> LocalStore:
    """A run with a checkpoint of TINY."""
    store = LocalStore(str(tmp_path / "r"), tmp_path / "r")
    model = UNet(TINY.model)
    state = TrainState(model, make_optimizer(TINY.optim, model), None, Progress(step=1))
    checkpoint.publish(checkpoint.snapshot(state, TINY), store, "step-00000001-a1")
    return store


def test_a_name_given_is_kept_and_one_derived_is_of_what_shapes_the_result() -> None:
    assert run.named(TINY) is TINY

    def derived(**settings: object) -> str | None:
        return run.named(
            with_overrides(Config(), {k.replace("__", "."): v for k, v in settings.items()})
        ).run.name

    name = derived()
    assert name is not None
    assert name.startswith("run-")
    assert derived(cluster__workers=3, score__batch=2, track__project="x", run__dir="y") == name
    others = {
        derived(optim__lr=0.5),
        derived(data__source="z"),
        derived(data__window_shards=1),
        derived(data__image_size=64),
        derived(tune__trials=2),
        derived(split__seed=1),
    }
    assert len(others) == 6
    assert name not in others


def test_a_run_lies_in_its_folder_under_its_name(tmp_path: Path) -> None:
    config = with_overrides(TINY, {"run.dir": str(tmp_path) + "/"})
    assert run.run_uri(config) == f"{tmp_path}/r"
    assert run.workspace(run.open_run(config), config) == tmp_path / "r"
    assert run.run_uri(with_overrides(TINY, {"run.dir": "s3://bucket/runs"})) == "s3://bucket/runs/r"


def test_a_run_on_object_storage_has_a_local_workspace_of_its_own(tmp_path: Path) -> None:
    config = with_overrides(TINY, {"store.cache_dir": str(tmp_path)})
    folders = [run.workspace(open_store(f"s3://bucket/runs/{n}", config.store), config) for n in "aab"]
    assert folders[0] == folders[1] != folders[2]
    assert all(folder.is_relative_to(tmp_path) for folder in folders)


def test_local_places_are_made_absolute_and_buckets_are_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    config = with_overrides(TINY, {"data.source": "a", "data.shards": "s3://b/c", "run.dir": "/d"})
    made = run.absolute(config)
    assert (made.data.source, made.data.shards, made.run.dir) == (str(tmp_path / "a"), "s3://b/c", "/d")


def test_other_settings_are_refused_by_their_keys(trained: LocalStore, tmp_path: Path) -> None:
    other = with_overrides(TINY, {"optim.lr": 0.5, "schedule.kind": "step", "data.window_shards": 3})
    with pytest.raises(InputError) as caught:
        run.check_same_recipe(trained, other, tmp_path / "scratch")
    message = str(caught.value)
    for line in (
        "  data.window_shards: 8 before, 3 now",
        "  optim.lr: 0.001 before, 0.5 now",
        "  schedule.kind: cosine before, step now",
        "  schedule.final: 0.0 before, None now",
        "--set run.name=",
    ):
        assert line in message
    assert "model" not in message


def test_training_longer_on_more_workers_is_allowed(trained: LocalStore, tmp_path: Path) -> None:
    settings = {
        "train.epochs": 99,
        "train.early_stop": 3,
        "train.threads": 1,
        "train.log_every": 1,
        "train.keep_checkpoints": 1,
        "cluster.workers": 4,
        "score.batch": 1,
    }
    run.check_same_recipe(trained, with_overrides(TINY, settings), tmp_path / "scratch")


def test_a_run_without_a_whole_checkpoint_may_start_anew(tmp_path: Path) -> None:
    store = LocalStore("", tmp_path / "r")
    other = with_overrides(TINY, {"optim.lr": 0.5})
    run.check_same_recipe(store, other, tmp_path / "scratch")
    store.put("checkpoints/step-00000001-a1/model.safetensors", b"half")
    run.check_same_recipe(store, other, tmp_path / "scratch")


def test_a_stage_remembers_what_it_was_made_from(tmp_path: Path) -> None:
    store = LocalStore("", tmp_path)
    assert run.stage_record(store, "train") is None
    run.record_stage(store, "train", "abc", best="step-1", dice=0.5)
    assert run.stage_record(store, "train") == {"key": "abc", "best": "step-1", "dice": 0.5}
    assert run.stage_record(store, "score") is None
    store.put("stages/train.json", b'{"key": "ab')
    assert run.stage_record(store, "train") is None
