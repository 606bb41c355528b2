"""``bts score`` given a model or test shards that it cannot use: named, exit code 2, and no score is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from model_run import NAME, fresh_run, vouch
from safetensors.torch import load_file, save_file

from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.pseudonyms import FINGERPRINT_FILE, VARIABLE
from cluster.cli import guarded
from shards.config import NoSplit, PackConfig, PhantomConfig, StoreConfig
from shards.manifest import MANIFEST
from shards.pack import pack
from shards.parallel import process_map
from shards.phantom import generate
from shards.verify import verify_source


@pytest.fixture
def run(config: Config, tmp_path: Path) -> str:
    return fresh_run(tmp_path / "run", with_overrides(config, {"cluster.runtime": "local"}))


@pytest.fixture
def shards(packed: Path, tmp_path: Path) -> Path:
    """A copy of the packed phantom that a test may damage."""
    return shutil.copytree(packed, tmp_path / "shards")


def score(model: str, shards: Path, *sets: str) -> int:
    options = [f"data.shards={shards}", "cluster.runtime=local", *sets]
    return guarded(["score", "--model", model, *(word for option in options for word in ("--set", option))])


def fails(capsys: pytest.CaptureFixture[str], model: str, shards: Path, *sets: str) -> str:
    """Score in vain: exit code 2, one message, nothing new in the run; what was said, on one line."""
    root = Path(model.partition("/checkpoints/")[0])
    before = sorted(root.rglob("*"))
    code = score(model, shards, *sets)
    printed = capsys.readouterr()
    assert code == 2, printed.out + printed.err
    assert printed.err.startswith("error ")
    assert printed.err.count("error ") == 1
    assert "Traceback" not in printed.out + printed.err
    assert sorted(root.rglob("*")) == before
    return " ".join(printed.err.split())


def test_a_score_needs_nothing_but_model_and_shards(run: str, shards: Path) -> None:
    assert score(run, shards) == 0
    assert json.loads(next(Path(run).glob("score-*/score.json")).read_text())["patients"]


def test_another_key_for_patients_names_than_the_runs(
    capsys: pytest.CaptureFixture[str], run: str, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (Path(run) / FINGERPRINT_FILE).write_text("0123456789abcdef")
    monkeypatch.setenv(VARIABLE, "a key of the environment")
    text = fails(capsys, run, shards, "track.wandb=offline")
    assert (
        "a patient would have two names in one run; set the key of that fingerprint on every machine" in text
    )
    assert score(run, shards, "track.wandb=disabled") == 0, "nobody is named to W&B"


def test_weights_of_another_shape_than_the_config(
    capsys: pytest.CaptureFixture[str], run: str, shards: Path
) -> None:
    folder = Path(run) / "checkpoints" / NAME
    weights = load_file(folder / "model.safetensors")
    weights["down.0.layers.0.weight"] = weights["down.0.layers.0.weight"][:, :1].contiguous()
    save_file(weights, folder / "model.safetensors")
    vouch(run)
    text = fails(capsys, run, shards)
    assert f"{NAME}/model.safetensors: 1 tensors do not fit" in text
    assert "down.0.layers.0.weight: (4, 1, 3, 3) in the file, (4, 3, 3, 3) in the model" in text


def test_a_config_of_another_shape_than_the_weights(
    capsys: pytest.CaptureFixture[str], run: str, shards: Path
) -> None:
    file = Path(run) / "checkpoints" / NAME / "config.json"
    file.write_text(file.read_text().replace('"depth": 3', '"depth": 4'))
    assert f"{file.parent} is not a whole checkpoint: config.json does not match" in fails(
        capsys, f"{run}/checkpoints/{NAME}", shards
    )
    vouch(run)
    assert f"{NAME}/model.safetensors: 32 tensors do not fit" in fails(capsys, run, shards)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("config.json", lambda data: data.replace(b'"depth"', b'"deepness"')),
        ("config.json", lambda data: data[:100]),
        ("state.json", lambda data: data.replace(b'"threshold"', b'"treshold"')),
        ("state.json", lambda data: data[:100]),
        ("model.safetensors", lambda data: data[:-100]),
        ("model.safetensors", lambda data: b""),
    ],
)
def test_a_checkpoint_whose_files_are_none(
    capsys: pytest.CaptureFixture[str], run: str, shards: Path, name: str, spoil: Callable[[bytes], bytes]
) -> None:
    file = Path(run) / "checkpoints" / NAME / name
    file.write_bytes(spoil(file.read_bytes()))
    vouch(run)
    for model in (run, f"{run}/checkpoints/{NAME}"):
        assert f"{NAME}/{name} is " in fails(capsys, model, shards)


def test_a_test_patient_that_the_model_was_trained_on(
    capsys: pytest.CaptureFixture[str], config: Config, shards: Path, tmp_path: Path
) -> None:
    patient = json.loads((shards / MANIFEST).read_text())["patients"]["test"][0]
    seen = fresh_run(tmp_path / "seen", config, patients=(patient,))
    text = fails(capsys, seen, shards)
    assert "trained or chosen on" in text
    assert patient in text


def test_weights_that_are_no_numbers(
    capsys: pytest.CaptureFixture[str], config: Config, shards: Path, tmp_path: Path
) -> None:
    broken = fresh_run(tmp_path / "broken", config, broken=True)
    patient = json.loads((shards / MANIFEST).read_text())["patients"]["test"][0]
    text = fails(capsys, broken, shards)
    assert f"{patient}: the model's output is not finite in" in text
    assert "name another checkpoint" in text


def test_slices_that_the_model_cannot_halve(
    capsys: pytest.CaptureFixture[str], config: Config, tmp_path: Path
) -> None:
    native = fresh_run(tmp_path / "native", with_overrides(config, {"data.image_size": None}))
    source, shards = tmp_path / "raw", tmp_path / "odd"
    generate(PhantomConfig(patients=2, size=34, min_slices=3, max_slices=3), source, workers=1)
    report = verify_source(str(source), StoreConfig(), 1)
    pack(
        report,
        str(shards),
        source=str(source),
        split=NoSplit(),
        config=PackConfig(),
        store=StoreConfig(),
        parallel=process_map(1),
    )
    text = fails(capsys, native, shards)
    assert f"{shards}: axial slices are 34×34 pixels" in text
    assert "multiples of 4" in text


def truncated(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-2000])


def flipped(shard: Path) -> None:
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)


@pytest.mark.parametrize("damage", [Path.unlink, truncated, flipped])
def test_a_test_shard_that_is_missing_or_damaged(
    capsys: pytest.CaptureFixture[str], run: str, shards: Path, damage: Callable[[Path], None]
) -> None:
    shard = sorted((shards / "shards").glob("test-*.tar"))[0]
    damage(shard)
    text = fails(capsys, run, shards)
    assert f"shards/{shard.name}" in text


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_on_ray_a_missing_shard_is_bad_input_too(
    capsys: pytest.CaptureFixture[str], run: str, shards: Path
) -> None:
    shard = sorted((shards / "shards").glob("test-*.tar"))[0]
    shard.unlink()
    sets = ("cluster.runtime=ray", "cluster.workers=1", "cluster.cpus_per_worker=0.5")
    assert f"shards/{shard.name}" in fails(capsys, run, shards, *sets)


def test_a_data_set_that_is_none(capsys: pytest.CaptureFixture[str], run: str, tmp_path: Path) -> None:
    assert "nowhere" in fails(capsys, run, tmp_path / "nowhere")
