"""Raw files get the masks that scoring judges on their shards, in their own geometry, whole or not at all."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from model_run import THRESHOLD, fresh_run
from PIL import Image
from scans import affine_of, write_nifti, write_series

from bts_dist.axial import AxialView
from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.data import SampleSource
from bts_dist.intake import find_studies
from bts_dist.model import Model, find_model, load_model
from bts_dist.predict import predict_patient
from bts_dist.prediction import RECORD, VOLUMES, run_prediction, study_probabilities
from bts_dist.slices_intake import natural_order
from shards.config import DataConfig, StoreConfig
from shards.errors import InputError
from shards.layout import patient_of
from shards.reader import PackedData

STORE, CPU = StoreConfig(), torch.device("cpu")


@pytest.fixture(scope="module")
def run(config: Config, tmp_path_factory: pytest.TempPathFactory) -> str:
    return fresh_run(tmp_path_factory.mktemp("model") / "run", config)


@pytest.fixture(scope="module")
def model(run: str) -> Model:
    return load_model(find_model(run, STORE), STORE, CPU)


@pytest.fixture(scope="module")
def source(packed: Path) -> Path:
    """The files that were packed."""
    return packed.parent / "source"


def predict(run: str, source: Path, out: Path, *sets: tuple[str, object]) -> dict:
    place = find_model(run, STORE)
    model = load_model(place, STORE, CPU)
    return run_prediction(
        place, model, with_overrides(model.config, dict(sets)), find_studies(str(source)), out
    )


def written(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("image_size", [None, 16])
@pytest.mark.parametrize("batch", [1, 4])
def test_raw_files_give_the_bits_that_scoring_sees(
    model: Model, source: Path, everyone: Path, image_size: int | None, batch: int
) -> None:
    model = replace(model, config=with_overrides(model.config, {"data.image_size": image_size}))
    reader = PackedData(str(everyone)).test()
    packed = SampleSource(reader, DataConfig(image_size=image_size, cache="none", decode_threads=0))
    studies = find_studies(str(source))
    assert sorted(patient_of(study.patient) for study in studies) == reader.index.patients()
    for study in studies:
        scored, _ = predict_patient(
            model.network,
            packed,
            patient_of(study.patient),
            device=CPU,
            batch=batch,
            precision=model.config.train.precision,
            mirror=model.config.score.mirror,
        )
        assert np.array_equal(study_probabilities(model, study.read(), batch), scored)


def test_a_folder_of_patients(run: str, model: Model, source: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    place = find_model(run, STORE)
    record = run_prediction(
        place,
        model,
        model.config,
        find_studies(str(source)),
        tmp_path / "out",
        lambda done, total: seen.append((done, total)),
    )
    patients = sorted(p.name for p in source.iterdir())
    assert [row["patient"] for row in record["patients"]] == patients
    assert seen[-1][0] == seen[-1][1] == sum(row["slices"] for row in record["patients"])
    assert json.loads((tmp_path / "out" / RECORD).read_text()) == record
    assert record["model"]["threshold"] == THRESHOLD
    assert record["model"]["checkpoint"].endswith("/checkpoints/step-00000001-a1")
    assert record["config"] == model.config.model_dump(mode="json")
    assert {"torch", "nibabel", "pydicom", "bts-dist"} < record["versions"].keys()
    for row, study in zip(record["patients"], find_studies(str(source)), strict=True):
        image = study.read()
        mask = study_probabilities(model, image, model.config.score.batch) > THRESHOLD
        assert 0 < mask.sum() < mask.size
        folder = tmp_path / "out" / "masks" / study.patient
        found = [np.asarray(Image.open(folder / f"{path.stem}_mask.tif")) for path in study.files]
        assert np.array_equal(np.stack(found), mask * np.uint8(255))
        assert row["tumour_voxels"] == mask.sum()
        assert row["tumour_ml"] is None
        overlays = sorted(p.name for p in (tmp_path / "out" / "overlays" / study.patient).iterdir())
        assert overlays == [f"{i + 1:04d}.png" for i in np.flatnonzero(mask.any(axis=(1, 2)))]
    with (tmp_path / "out" / VOLUMES).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["patient"] for row in rows] == patients
    assert {row["tumour_ml"] for row in rows} == {""}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_again_gives_the_same_bytes(run: str, source: Path, tmp_path: Path) -> None:
    patient = sorted(source.iterdir())[0]
    for name in ("one", "two"):
        predict(run, patient, tmp_path / name)
    assert written(tmp_path / "one") == written(tmp_path / "two")


@pytest.mark.parametrize("axes", ["LPS", "SRA"])
def test_one_head_has_one_mask_in_every_format(run: str, source: Path, tmp_path: Path, axes: str) -> None:
    study = find_studies(str(sorted(source.iterdir())[0]))[0]
    flair = study.read()[..., 1]
    (tmp_path / "png").mkdir()
    for number, slice_HW in enumerate(flair, start=1):
        Image.fromarray(slice_HW).save(tmp_path / "png" / f"{number}.png")
    affine = affine_of(axes, (1, 1, 1), 10)
    shape = {"LPS": (32, 32, len(flair)), "SRA": (len(flair), 32, 32)}[axes]
    view = AxialView(affine, shape)
    nifti = write_nifti(tmp_path / "v.nii.gz", view.volume(flair), affine)
    write_series(tmp_path / "dicom", flair)
    masks, pictures = {}, {}
    for given in (tmp_path / "png", nifti, tmp_path / "dicom"):
        out = tmp_path / f"out-{given.name}"
        (row,) = predict(run, given, out)["patients"]
        voxel = {"slices": None, "nifti": 1.0, "dicom": 3.6}[row["format"]]
        assert row["voxel_mm3"] == (voxel and pytest.approx(voxel))
        assert row["tumour_ml"] == (voxel and pytest.approx(row["tumour_voxels"] * voxel / 1000))
        assert row["missing"] == ["pre", "post"]
        masks[row["format"]] = read_masks(out / "masks" / row["patient"], view)
        pictures[row["format"]] = written(out / "overlays" / row["patient"])
    assert 0 < masks["slices"].sum() < flair.size
    assert np.array_equal(masks["nifti"], masks["slices"])
    assert np.array_equal(masks["dicom"], masks["slices"])
    assert pictures["nifti"] == pictures["dicom"] == pictures["slices"]


def read_masks(folder: Path, view: AxialView) -> np.ndarray:
    """The masks in a folder as axial slices, bool (N, H, W)."""
    paths = sorted(folder.iterdir(), key=natural_order)
    match paths[0].suffix:
        case ".gz":
            return view.slices(np.asarray(nib.load(paths[0]).dataobj)) > 0
        case ".dcm":
            slices = sorted(map(pydicom.dcmread, paths), key=lambda data: data.ImagePositionPatient[2])
            return np.stack([data.pixel_array for data in slices]) > 0
    return np.stack([np.asarray(Image.open(path)) for path in paths]) > 0


def test_a_patient_without_tumour_has_a_picture_too(
    model: Model, run: str, source: Path, tmp_path: Path
) -> None:
    silent = replace(model, inference=replace(model.inference, threshold=0.999))
    patient = sorted(source.iterdir())[0]
    record = run_prediction(
        find_model(run, STORE), silent, model.config, find_studies(str(patient)), tmp_path / "out"
    )
    assert record["patients"][0]["tumour_voxels"] == 0
    assert len(list((tmp_path / "out" / "overlays" / patient.name).iterdir())) == 1


def test_a_patient_the_model_saw_is_noted(config: Config, source: Path, tmp_path: Path) -> None:
    first, second = sorted(source.iterdir())[:2]
    run = fresh_run(tmp_path / "run", config, patients=(patient_of(first.name),))
    assert "trained or chosen on" in predict(run, first, tmp_path / "a")["patients"][0]["notes"][0]
    assert predict(run, second, tmp_path / "b")["patients"][0]["notes"] == []


def test_a_model_without_numbers_leaves_nothing(config: Config, source: Path, tmp_path: Path) -> None:
    run = fresh_run(tmp_path / "run", config, broken=True)
    patient = sorted(source.iterdir())[0]
    with pytest.raises(InputError, match=f"{patient.name}: the model's output is not finite"):
        predict(run, patient, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_a_folder_in_use_is_left_alone(run: str, source: Path, tmp_path: Path) -> None:
    patient = sorted(source.iterdir())[0]
    (tmp_path / "out").mkdir()
    predict(run, patient, tmp_path / "out")
    before = written(tmp_path / "out")
    with pytest.raises(
        InputError, match=r"out holds a prediction already \(masks, overlays, prediction\.json\)"
    ):
        predict(run, patient, tmp_path / "out")
    assert written(tmp_path / "out") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    with pytest.raises(InputError, match=r"mine holds other things already \(thesis\.txt\)"):
        predict(run, patient, tmp_path / "mine")
    with pytest.raises(InputError, match=r"thesis\.txt is a file"):
        predict(run, patient, tmp_path / "mine" / "thesis.txt")


def test_what_a_killed_prediction_left_is_no_obstacle(run: str, source: Path, tmp_path: Path) -> None:
    (tmp_path / "out.partial" / "masks").mkdir(parents=True)
    predict(run, sorted(source.iterdir())[0], tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_sides_that_the_model_cannot_halve_are_named(
    run: str, model: Model, config: Config, tmp_path: Path
) -> None:
    volume = np.random.default_rng(0).integers(0, 99, (33, 32, 5)).astype(np.int16)
    path = write_nifti(tmp_path / "odd.nii", volume, affine_of("LPS", (1, 1, 1)))
    with pytest.raises(InputError, match=r"odd: axial slices are 32×33 pixels.* multiples of 2"):
        predict(run, path, tmp_path / "out")
    resizing = fresh_run(tmp_path / "run", with_overrides(config, {"data.image_size": 16}))
    row = predict(resizing, path, tmp_path / "out")["patients"][0]
    assert row["slice_shape"] == [32, 33]


def test_predicting_another_way_than_in_validation_is_refused(run: str, source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"score\.mirror is False"):
        predict(run, source, tmp_path / "out", ("score.mirror", False))
