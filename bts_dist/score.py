"""Scoring on held-out patients: the only code that opens test samples.

Everything here is decided before: weights, threshold and settings come from the checkpoint, which chose them on
the validation patients.  A patient the checkpoint was trained or chosen on is refused.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bts_dist import checkpoint, memory, metrics
from bts_dist.checkpoint import Progress
from bts_dist.config import Config
from bts_dist.data import SampleSource
from bts_dist.gallery import PatientSlices, patient_slices
from bts_dist.metrics import PatientScore
from bts_dist.predict import predict_patient
from bts_dist.report import CLAIM
from bts_dist.runtime import pick_device
from bts_dist.surface import surface_scores
from bts_dist.unet import make_unet
from shards.config import StoreConfig
from shards.errors import InputError
from shards.picture import overlay, to_png
from shards.reader import PackedData
from shards.store import ObjectStore, join_uri, open_store


@dataclass(frozen=True)
class Model:
    """A trained model, ready to predict."""

    network: nn.Module
    config: Config
    progress: Progress
    device: torch.device


@dataclass(frozen=True)
class ModelPlace:
    """Where a checkpoint lies: the run's location and the checkpoint's name."""

    run: str
    name: str


@dataclass(frozen=True)
class ScoreTask:
    """Test patients for one worker, anywhere in the cluster."""

    model: ModelPlace
    shards: str
    config: str
    """The scoring config as JSON: data, score and store sections count."""
    patients: tuple[str, ...]


@dataclass(frozen=True)
class Scored:
    """One patient's score, with a picture of the slice that has the most tumour."""

    score: PatientScore
    slice_number: int
    picture: bytes
    """PNG."""
    slices: PatientSlices
    """Every slice, for the report."""


def find_model(uri: str, store: StoreConfig) -> ModelPlace:
    """The checkpoint meant by ``uri``: a checkpoint itself, or a run's best one.

    Raises:
        InputError: there is no whole checkpoint.
    """
    uri = uri.rstrip("/")
    parent, _, name = uri.rpartition(f"/{checkpoint.FOLDER}/")
    if parent and checkpoint.is_name(name):
        return ModelPlace(parent, name)
    run = open_store(uri, store)
    with tempfile.TemporaryDirectory() as scratch:
        newest = checkpoint.fetch_newest(run, Path(scratch), lambda _: None)
        if newest is None:
            raise InputError(
                f"{uri} holds no whole checkpoint; train one with `bts train`, or name another run"
            )
        best = checkpoint.read_progress(newest).best
    return ModelPlace(uri, best or newest.name)


def load_model(place: ModelPlace, store: StoreConfig, device: torch.device) -> Model:
    """Load the weights that were validated: the moving average where there is one.

    Raises:
        InputError: the checkpoint is missing, damaged, or of another architecture than its config.
    """
    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder = checkpoint.fetch(open_store(place.run, store), place.name, Path(scratch))
        except ValueError as error:
            raise InputError(
                f"{join_uri(place.run, checkpoint.FOLDER, place.name)} is not a whole checkpoint: {error}"
            ) from error
        config = checkpoint.read_config(folder)
        network = make_unet(config.model, device)
        ema = folder / "ema.safetensors"
        checkpoint.load_weights(network, ema if ema.is_file() else folder / "model.safetensors")
        progress = checkpoint.read_progress(folder)
    return Model(network.eval(), config, progress, device)


def check_unseen(model: Progress, data: PackedData) -> list[str]:
    """The test patients, none of whom the model has seen.

    Raises:
        InputError: there are none, or some were trained or chosen on.
    """
    patients = data.test().index.patients()
    if not patients:
        raise InputError(
            f"{data.store.uri} has no test patients; pack it with a test share or split.kind=none"
        )
    seen = sorted(set(patients) & set(model.patients))
    if seen:
        raise InputError(
            f"{len(seen)} of {len(patients)} test patients were trained or chosen on by this model (first: "
            f"{seen[0]}); their scores would mean nothing. Score on the data set the model was trained with, or "
            "on other patients"
        )
    return patients


def score_patients(task: ScoreTask) -> list[Scored]:
    """Score a task's patients.  Batches never span patients, so the result does not depend on the division."""
    config = Config.model_validate_json(task.config)
    model = load_model(task.model, config.store, pick_device(0))
    reader = PackedData(task.shards, config.store).test()
    data = config.data.model_copy(update={"image_size": model.config.data.image_size, "cache": "none"})
    source = SampleSource(reader, data)
    try:
        return [_score_patient(model, source, patient, config) for patient in task.patients]
    finally:
        source.close()


def _score_patient(model: Model, source: SampleSource, patient: str, config: Config) -> Scored:
    with memory.explained(memory.in_scoring, config, model.config, model.device, patient, source.sides):
        probability, truth = predict_patient(
            model.network,
            source,
            patient,
            device=model.device,
            batch=config.score.batch,
            precision=model.config.train.precision,
            # The threshold was chosen on predictions made this way.
            mirror=model.config.score.mirror,
        )
    if not np.isfinite(probability).all():
        raise FloatingPointError(f"{patient}: the model's output is not finite; the checkpoint is of no use")
    prediction, mask = probability > model.progress.threshold, truth > 0
    surface = surface_scores(prediction, mask, tolerance=config.score.tolerance_px)
    counts = metrics.count(prediction, mask)
    index = source.reader.index
    ids = index.samples_of(patient)
    score = PatientScore(patient, index.institution[ids[0]], counts, surface.hd95, surface.surface_dice)
    # Where truth or prediction has most to show, so that a missed and an imagined tumour are seen alike.
    at = int(np.maximum(mask.sum(axis=(1, 2)), prediction.sum(axis=(1, 2))).argmax())
    image, _ = source.reader.read(int(ids[at]))
    picture = to_png(overlay(image, mask[at], prediction[at]))
    numbers = index.slice_number[ids].tolist()
    images = (source.reader.read(int(sample))[0] for sample in ids)
    slices = patient_slices(patient, numbers, images, mask, prediction, counts)
    return Scored(score, numbers[at], picture, slices)


def tasks(model: ModelPlace, config: Config, patients: Sequence[str], workers: int) -> list[ScoreTask]:
    """Deal patients out to at most ``workers`` tasks."""
    dealt = [tuple(patients[i::workers]) for i in range(min(workers, len(patients)))]
    return [ScoreTask(model, config.data.shards, config.model_dump_json(), part) for part in dealt]


def run_score(
    place: ModelPlace,
    config: Config,
    workers: int,
    parallel: Callable[[Callable[[ScoreTask], list[Scored]], Sequence[ScoreTask]], Iterator[list[Scored]]],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[str, dict[str, Any]]:
    """Score the test patients of ``config.data.shards`` and write the results beside the model's run.

    Returns the location written to and the content of ``score.json``.

    Raises:
        InputError: as ``load_model`` and ``check_unseen``; or predictions are to be made in another way than those
            the threshold was chosen on.
    """
    model = load_model(place, config.store, torch.device("cpu"))
    if config.score.mirror != model.config.score.mirror:
        raise InputError(
            f"score.mirror is {config.score.mirror}, but epoch and threshold of this model were chosen with "
            f"{model.config.score.mirror}; leave it as it was, or train with score.mirror={config.score.mirror}"
        )
    data = PackedData(config.data.shards, config.store)
    patients = check_unseen(model.progress, data)
    scored: list[Scored] = []
    # Small parts, so that the progress shows and no worker is left with the long end.
    for part in parallel(score_patients, tasks(place, config, patients, max(workers, len(patients) // 4))):
        scored += part
        if progress is not None:
            progress(len(scored), len(patients))
    return _write(place, model, data, sorted(scored, key=lambda s: s.score.patient), config)


def score_folder(model_data_id: str, data_id: str) -> str:
    """Scores on the model's own test patients are ``score``; on another data set they carry its id."""
    return "score" if model_data_id == data_id else f"score-{data_id}"


def _write(
    place: ModelPlace, model: Model, data: PackedData, scored: list[Scored], config: Config
) -> tuple[str, dict[str, Any]]:
    scores = [s.score for s in scored]
    estimates = metrics.summarise(scores, config.score.bootstrap, config.score.seed)
    manifest = data.manifest
    result = {
        **metrics.to_json(scores, estimates),
        "threshold": model.progress.threshold,
        "checkpoint": f"{place.name} (epoch {model.progress.epoch})",
        "claim": dict(CLAIM),
        "data": {
            "shards": config.data.shards,
            "data id": manifest.data_id,
            "patients": len(scores),
            "slices": manifest.num_samples("test"),
        },
        "pictures": {s.score.patient: s.slice_number for s in scored},
        "config": model.config.model_dump(mode="json"),
    }
    folder = score_folder(model.progress.data_id, manifest.data_id)
    run = open_store(place.run, config.store)
    for item in scored:
        run.put(f"{folder}/overlays/{item.score.patient}.png", item.picture)
        run.put(f"{folder}/gallery/{item.score.patient}.json", json.dumps(item.slices).encode())
    with tempfile.TemporaryDirectory() as scratch:
        table = Path(scratch) / "patients.csv"
        metrics.write_csv(table, scores)
        run.put(f"{folder}/patients.csv", table.read_bytes())
    run.put(f"{folder}/score.json", (json.dumps(result, indent=1) + "\n").encode())
    return join_uri(place.run, folder), result


def read_score(run: ObjectStore, folder: str = "score") -> dict[str, Any]:
    """A run's ``score.json``.  Raises ``MissingObject``."""
    result: dict[str, Any] = json.loads(run.get(f"{folder}/score.json"))
    return result
