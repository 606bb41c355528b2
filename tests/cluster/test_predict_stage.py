"""``bts predict`` as a user types it: what it prints, and bad input by name with exit code 2."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from model_run import NAME, fresh_run
from PIL import Image

from bts_dist import checkpoint
from bts_dist.compose import with_overrides
from bts_dist.config import Config
from cluster.cli import guarded


@pytest.fixture
def run(config: Config, tmp_path: Path) -> str:
    return fresh_run(tmp_path / "run", config)


@pytest.fixture
def patient(phantom: Path) -> Path:
    return sorted(phantom.iterdir())[0]


def fails(capsys: pytest.CaptureFixture[str], model: str, source: Path, out: Path, *more: str) -> str:
    """Predict in vain: exit code 2, one message, no folder; what was said, on one line."""
    code = guarded(["predict", model, str(source), str(out), *more])
    printed = capsys.readouterr()
    assert code == 2, printed.out + printed.err
    assert printed.err.startswith("error ")
    assert "Traceback" not in printed.out + printed.err
    assert not out.exists()
    assert not out.with_name(f"{out.name}.partial").exists()
    return " ".join(printed.err.split())


def test_a_folder_of_patients(
    capsys: pytest.CaptureFixture[str], run: str, phantom: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert guarded(["predict", run, str(phantom), str(out), "--set", "score.batch=3"]) == 0
    printed = capsys.readouterr().out
    patients = sorted(p.name for p in phantom.iterdir())
    assert all(name in printed for name in patients)
    assert f"next: open {out}/overlays" in printed
    record = json.loads((out / "prediction.json").read_text())
    assert record["model"]["batch"] == 3
    total = sum(row["slices"] for row in record["patients"])
    assert f"predict: {total}/{total} slices" in printed
    assert sorted(p.name for p in out.iterdir()) == ["masks", "overlays", "prediction.json", "volumes.csv"]
    masks = list((out / "masks").rglob("*_mask.tif"))
    assert len(masks) == total


def test_a_checkpoint_stands_for_itself(run: str, patient: Path, tmp_path: Path) -> None:
    assert guarded(["predict", f"{run}/checkpoints/{NAME}", str(patient), str(tmp_path / "out")]) == 0


def test_a_model_that_is_none(capsys: pytest.CaptureFixture[str], patient: Path, tmp_path: Path) -> None:
    text = fails(capsys, str(tmp_path / "nowhere"), patient, tmp_path / "out")
    assert "nowhere holds no whole checkpoint" in text


def test_a_model_of_another_shape_than_its_config(
    capsys: pytest.CaptureFixture[str], config: Config, run: str, patient: Path, tmp_path: Path
) -> None:
    folder = Path(run) / "checkpoints" / NAME
    other = with_overrides(config, {"model.features": 6})
    (folder / "config.json").write_text(other.model_dump_json())
    assert "config.json does not match its sha256" in fails(
        capsys, run + f"/checkpoints/{NAME}", patient, tmp_path / "out"
    )
    hashes = {
        name: checkpoint._sha256((folder / name).read_bytes())
        for name in json.loads((folder / "files.json").read_text())
    }
    (folder / "files.json").write_text(json.dumps(hashes))
    text = fails(capsys, run, patient, tmp_path / "out")
    assert (
        "tensors do not fit the configured model, first down.0.layers.0.weight: (4, 3, 3, 3) in the file"
        in text
    )


def test_a_model_that_gives_no_numbers(
    capsys: pytest.CaptureFixture[str], config: Config, patient: Path, tmp_path: Path
) -> None:
    broken = fresh_run(tmp_path / "broken", config, broken=True)
    assert f"{patient.name}: the model's output is not finite" in fails(
        capsys, broken, patient, tmp_path / "out"
    )


def test_a_screenshot(capsys: pytest.CaptureFixture[str], run: str, tmp_path: Path) -> None:
    screen = np.random.default_rng(0).integers(0, 255, (48, 64, 3)).astype(np.uint8)
    shot = tmp_path / "Screenshot.png"
    Image.fromarray(screen).save(shot)
    assert "Screenshot.png is a colour picture, as a screenshot is" in fails(
        capsys, run, shot, tmp_path / "out"
    )
    Image.fromarray(screen).convert("RGBA").save(shot)
    assert "Screenshot.png is a 4-channel 8-bit picture" in fails(capsys, run, shot, tmp_path / "out")


def test_a_volume_of_four_dimensions(capsys: pytest.CaptureFixture[str], run: str, tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 4, 2), np.int16), np.eye(4)), tmp_path / "bold.nii.gz")
    assert "bold.nii.gz is 4D (8×8×4×2)" in fails(capsys, run, tmp_path / "bold.nii.gz", tmp_path / "out")


def test_a_wrong_setting_names_the_key(
    capsys: pytest.CaptureFixture[str], run: str, patient: Path, tmp_path: Path
) -> None:
    assert "did you mean score.batch?" in fails(
        capsys, run, patient, tmp_path / "out", "--set", "score.bach=1"
    )
