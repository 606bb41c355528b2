"""``bts export``: bad input is told before anything is written; the model's own config says where data lies."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from model_run import fresh_run

from bts_dist import checkpoint
from bts_dist.checkpoint import Progress, TrainState
from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.export import Export
from bts_dist.model import Model, ModelPlace
from bts_dist.optim import make_optimizer
from bts_dist.parity import Parity, ParityError
from bts_dist.run import run_uri
from bts_dist.unet import make_unet
from cluster import export_stage
from cluster.cli import guarded

NAME = "step-00000001-a1"


@pytest.fixture
def run(config: Config) -> str:
    """A run with one checkpoint of random weights."""
    save(config, config)
    return run_uri(config)


def save(config: Config, told: Config) -> None:
    """Write a checkpoint of the config's model which says that it is of ``told``."""
    network = make_unet(config.model, torch.device("cpu"))
    state = TrainState(network, make_optimizer(config.optim, network), None, Progress(1, 1, best=NAME))
    checkpoint.save(state, told, Path(run_uri(config)) / "checkpoints" / NAME)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    assert guarded(["export", *arguments]) == code
    printed = capsys.readouterr()
    assert printed.err.startswith("error ")
    assert "Traceback" not in printed.err
    return " ".join((printed.out + printed.err).split())


def test_a_run_without_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = fails(capsys, str(tmp_path / "none"), str(tmp_path / "out"))
    assert f"{tmp_path / 'none'} holds no whole checkpoint" in text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty(capsys: pytest.CaptureFixture[str], run: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert f"{out} exists and is not an empty folder" in fails(capsys, run, str(out))
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def test_a_model_of_another_shape_than_its_config(
    capsys: pytest.CaptureFixture[str], config: Config, tmp_path: Path
) -> None:
    save(config, with_overrides(config, {"model.features": 6}))
    text = fails(capsys, run_uri(config), str(tmp_path / "out"))
    assert "do not fit the configured model" in text
    assert not (tmp_path / "out").exists()


def test_a_model_that_gives_no_numbers_is_told_before_it_is_traced(
    capsys: pytest.CaptureFixture[str], config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bts_dist.export.write_network", lambda *_: pytest.fail("traced"))
    broken = fresh_run(tmp_path / "broken", config, broken=True)
    text = fails(capsys, broken, str(tmp_path / "exports" / "out"))
    assert re.search(r"PHANTOM_\w+: the model's output is not finite in (\d+) of \1 slices", text)
    assert list((tmp_path / "exports").iterdir()) == []


def test_slices_that_the_model_cannot_halve(
    capsys: pytest.CaptureFixture[str], config: Config, packed: Path, tmp_path: Path
) -> None:
    deep = {"data.image_size": None, "model.depth": 7}
    native = fresh_run(tmp_path / "native", with_overrides(config, deep))
    text = fails(capsys, native, str(tmp_path / "exports" / "out"))
    assert "slices of 32 × 32 pixels do not divide by 64" in text
    assert list((tmp_path / "exports").iterdir()) == []


def test_a_validation_shard_that_is_missing(
    capsys: pytest.CaptureFixture[str], run: str, packed: Path, tmp_path: Path
) -> None:
    shards = shutil.copytree(packed, tmp_path / "shards")
    shard = sorted((shards / "shards").glob("val-*.tar"))[0]
    shard.unlink()
    text = fails(capsys, run, str(tmp_path / "exports" / "out"), "--set", f"data.shards={shards}")
    assert f"shards/{shard.name}" in text
    assert list((tmp_path / "exports").iterdir()) == []


def test_another_way_to_predict_than_was_validated(
    capsys: pytest.CaptureFixture[str], run: str, tmp_path: Path
) -> None:
    assert "score.mirror is False" in fails(capsys, run, str(tmp_path / "out"), "--set", "score.mirror=false")


def test_a_model_is_exported_with_its_own_config(
    capsys: pytest.CaptureFixture[str],
    config: Config,
    run: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[Config] = []

    def export_model(place: ModelPlace, model: Model, config: Config, out: Path) -> Export:
        assert place == ModelPlace(run, NAME)
        given.append(config)
        return Export(out, "5 slices", {"model.onnx": Parity(2e-7, 1, 42, 99)}, {"model.onnx": 2048})

    monkeypatch.setattr(export_stage, "export_model", export_model)
    out = tmp_path / "out"
    assert guarded(["export", run, str(out)]) == 0
    assert guarded(["export", f"{run}/checkpoints/{NAME}", str(out), "--set", "score.batch=3"]) == 0
    assert given == [config, with_overrides(config, {"score.batch": 3})]
    printed = capsys.readouterr().out
    for part in ("5 slices", "2e-07", "42", "99", f"{out}: model.onnx 2 KiB", f"open {out}/MODEL_CARD.md"):
        assert part in printed


def test_a_refused_export_is_a_failure_with_clear_words(
    capsys: pytest.CaptureFixture[str], run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Export:
        raise ParityError("model.onnx differs from scoring")

    monkeypatch.setattr(export_stage, "export_model", refuse)
    assert "error model.onnx differs from scoring" in fails(capsys, run, str(tmp_path / "out"), code=1)
