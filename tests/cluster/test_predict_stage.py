"""``bts predict`` as a user types it: what it prints, and bad input by name with exit code 2."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from model_run import NAME, fresh_run, vouch
from PIL import Image, ImageDraw
from scans import write_series

from bts_dist.compose import with_overrides
from bts_dist.config import Config
from cluster.cli import guarded
from cluster.stages import model_config


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


def test_without_a_gpu_when_told_so(
    run: str, patient: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # any use of it fails here
    options = ["--set", "cluster.gpus_per_worker=0"]
    assert guarded(["predict", run, str(patient), str(tmp_path / "out"), *options]) == 0


def test_what_the_training_had_of_gpus_is_no_matter(
    config: Config, patient: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = {"cluster.gpus_per_worker": 0, "cluster.address": "elsewhere:6379"}
    run = fresh_run(tmp_path / "run", with_overrides(config, trained))
    asked: list[float | None] = []

    def pick(local_rank: int, gpus: float | None) -> torch.device:
        asked.append(gpus)
        return torch.device("cpu")

    monkeypatch.setattr("cluster.predict_stage.pick_device", pick)
    assert guarded(["predict", run, str(patient), str(tmp_path / "out")]) == 0
    assert asked == [None]
    scoring = model_config(run).cluster
    assert (scoring.gpus_per_worker, scoring.address) == (None, None)


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
    vouch(run)
    text = fails(capsys, run, patient, tmp_path / "out")
    assert (
        "tensors do not fit the configured model, first down.0.layers.0.weight: (4, 3, 3, 3) in the file"
        in text
    )


def test_a_model_that_gives_no_numbers(
    capsys: pytest.CaptureFixture[str], config: Config, patient: Path, tmp_path: Path
) -> None:
    broken = fresh_run(tmp_path / "broken", config, broken=True)
    num = len(list(patient.glob("*_mask.tif")))
    assert f"{patient.name}: the model's output is not finite in {num} of {num} slices" in fails(
        capsys, broken, patient, tmp_path / "out"
    )


def screen(width: int, height: int, *, dark: bool) -> Image.Image:
    """A desktop with a title bar, text, and a window with a picture."""
    ground, ink = ((30, 30, 34), (210, 210, 210)) if dark else ((250, 250, 252), (30, 30, 30))
    shot = Image.new("RGB", (width, height), ground)
    draw = ImageDraw.Draw(shot)
    draw.rectangle((0, 0, width, 28), fill=(60, 90, 150))
    for y in range(40, height - 20, 18):
        draw.text((20, y), "File Edit View  W 400 L 40  patient 4711  " * (width // 300), fill=ink)
    draw.ellipse((width // 2, height // 4, width // 2 + height // 2, 3 * height // 4), fill=(128, 128, 128))
    return shot


@pytest.mark.parametrize(("size", "dark"), [((1920, 1080), False), ((1280, 1024), True)])
def test_a_screenshot(
    capsys: pytest.CaptureFixture[str], run: str, tmp_path: Path, size: tuple[int, int], dark: bool
) -> None:
    shot = tmp_path / "Screenshot from 2026-11-25 12-00-00.png"
    screen(*size, dark=dark).save(shot)
    text = fails(capsys, run, shot, tmp_path / "out")
    assert f"{shot} is a colour picture, as a screenshot is" in text
    screen(*size, dark=dark).convert("RGBA").save(shot)
    assert f"{shot} is a 4-channel 8-bit picture" in fails(capsys, run, shot, tmp_path / "out")
    # Called as slices of three sequences are, in the very folder that they would be in.
    (tmp_path / "case").mkdir()
    screen(*size, dark=dark).save(tmp_path / "case" / "case_1.png")
    text = fails(capsys, run, tmp_path / "case", tmp_path / "out")
    assert "case_1.png is a grey picture with some colour in it" in text


def test_a_grey_screenshot(capsys: pytest.CaptureFixture[str], run: str, tmp_path: Path) -> None:
    shot = tmp_path / "Screenshot.png"
    screen(1920, 1080, dark=True).convert("L").save(shot)
    text = fails(capsys, run, shot, tmp_path / "out")
    assert "Screenshot.png is 1080×1920 pixels, too long for an axial slice" in text
    screen(1280, 1024, dark=False).convert("L").save(shot)
    assert "Screenshot.png lies on a light ground, as a screenshot" in fails(
        capsys, run, shot, tmp_path / "out"
    )


def flair_of(patient: Path) -> list[np.ndarray]:
    files = sorted(path for path in patient.glob("*.tif") if not path.stem.endswith("_mask"))
    return [np.asarray(Image.open(path))[..., 1] for path in files]


@pytest.mark.parametrize(
    ("mode", "suffix", "what"),
    [
        ("RGBA", ".tif", "4-channel 8-bit"),
        ("CMYK", ".tif", "4-channel 8-bit"),
        ("LA", ".tif", "2-channel 8-bit"),
        ("LA", ".png", "2-channel 8-bit"),
        ("F", ".tif", "1-channel 32-bit"),
        ("1", ".png", "1-channel 1-bit"),
    ],
)
def test_pictures_of_other_channels_or_depths(
    capsys: pytest.CaptureFixture[str],
    run: str,
    patient: Path,
    tmp_path: Path,
    mode: str,
    suffix: str,
    what: str,
) -> None:
    (tmp_path / "case").mkdir()
    for number, pixels in enumerate(flair_of(patient), start=1):
        grey = Image.fromarray(pixels)
        picture = grey.convert("RGB").convert(mode) if mode in ("RGBA", "CMYK") else grey.convert(mode)
        picture.save(tmp_path / "case" / f"case_{number}{suffix}")
    text = fails(capsys, run, tmp_path / "case", tmp_path / "out")
    assert f"case_1{suffix} is a {what} picture" in text
    assert "save slices as 8- or 16-bit grey (FLAIR alone) or 8-bit RGB" in text


@pytest.mark.parametrize(("scale", "suffix"), [(1, ".png"), (1, ".tif"), (100, ".png"), (100, ".tif")])
def test_grey_pictures_of_any_size_are_flair(
    run: str, patient: Path, tmp_path: Path, scale: int, suffix: str
) -> None:
    (tmp_path / "case").mkdir()
    for number, pixels in enumerate(flair_of(patient), start=1):
        wide = np.pad(pixels, ((0, 0), (4, 5))) * (np.uint16(scale) if scale > 1 else np.uint8(1))
        Image.fromarray(wide).save(tmp_path / "case" / f"{number}{suffix}")
    assert guarded(["predict", run, str(tmp_path / "case"), str(tmp_path / "out")]) == 0
    mask = Image.open(tmp_path / "out" / "masks" / "case" / f"1_mask{suffix}")
    assert (mask.size, mask.mode) == ((41, 32), "L")


def test_slices_of_two_sizes(
    capsys: pytest.CaptureFixture[str], run: str, patient: Path, tmp_path: Path
) -> None:
    (tmp_path / "case").mkdir()
    for number, pixels in enumerate(flair_of(patient), start=1):
        Image.fromarray(pixels[: 30 if number == 2 else 32]).save(tmp_path / "case" / f"{number}.png")
    text = fails(capsys, run, tmp_path / "case", tmp_path / "out")
    assert "2.png is 30×32 pixels, 1.png 32×32; give slices of one patient, of one size" in text


def test_slices_that_the_model_cannot_halve(
    capsys: pytest.CaptureFixture[str], config: Config, patient: Path, tmp_path: Path
) -> None:
    native = fresh_run(tmp_path / "native", with_overrides(config, {"data.image_size": None}))
    (tmp_path / "case").mkdir()
    for number, pixels in enumerate(flair_of(patient), start=1):
        Image.fromarray(pixels[:30]).save(tmp_path / "case" / f"{number}.png")
    text = fails(capsys, native, tmp_path / "case", tmp_path / "out")
    assert "case: axial slices are 30×32 pixels" in text
    assert "multiples of 4; pad or resample" in text


def test_a_volume_of_four_dimensions(capsys: pytest.CaptureFixture[str], run: str, tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 4, 2), np.int16), np.eye(4)), tmp_path / "bold.nii.gz")
    assert "bold.nii.gz is 4D (8×8×4×2)" in fails(capsys, run, tmp_path / "bold.nii.gz", tmp_path / "out")


def test_two_series_in_one_folder(capsys: pytest.CaptureFixture[str], run: str, tmp_path: Path) -> None:
    slices = np.random.default_rng(0).integers(0, 999, (4, 32, 32)).astype(np.uint16)
    write_series(tmp_path / "study", slices)
    for path in write_series(tmp_path / "t1", slices, series="1.2.4", SeriesDescription="ax T1"):
        path.rename(tmp_path / "study" / f"T1{path.name}")
    text = fails(capsys, run, tmp_path / "study", tmp_path / "out")
    assert "study holds 2 series (ax FLAIR, 4 files, 1.2.3; ax T1, 4 files, 1.2.4)" in text


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"Modality": "CT"}, "is of modality CT, not MR; give the slices of one FLAIR series"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "is MONOCHROME1, not MONOCHROME2"),
        (
            {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"},
            "has 3 channels (RGB), like a screenshot",
        ),
    ],
)
def test_dicom_of_another_kind(
    capsys: pytest.CaptureFixture[str], run: str, tmp_path: Path, attributes: dict[str, Any], message: str
) -> None:
    slices = np.random.default_rng(0).integers(0, 99, (4, 32, 32)).astype(np.uint16)
    paths = write_series(tmp_path / "ct", slices, **attributes)
    text = fails(capsys, run, tmp_path / "ct", tmp_path / "out")
    assert f"{sorted(paths)[0]} {message}" in text


def test_a_wrong_setting_names_the_key(
    capsys: pytest.CaptureFixture[str], run: str, patient: Path, tmp_path: Path
) -> None:
    assert "did you mean score.batch?" in fails(
        capsys, run, patient, tmp_path / "out", "--set", "score.bach=1"
    )
