"""Scoring on held-out patients: the only code that opens test samples.

Everything here is decided before: weights, threshold and settings come from the checkpoint, which chose them on
the validation patients.  A patient the checkpoint was trained or chosen on is refused.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bts_dist import cohort, evaluation, memory
from bts_dist.checkpoint import Progress
from bts_dist.config import Config
from bts_dist.data import SampleSource
from bts_dist.evaluation import Evaluation
from bts_dist.gallery import PatientSlices, patient_slices
from bts_dist.model import Model, ModelPlace, check_as_validated, load_model, title
from bts_dist.model_limits import check_finite, check_sides
from bts_dist.patients import write_csv
from bts_dist.predict import predict_patient
from bts_dist.report import CLAIM
from bts_dist.runtime import pick_device
from shards.errors import InputError
from shards.manifest import Manifest
from shards.picture import overlay, to_png
from shards.reader import PackedData
from shards.store import ObjectStore, join_uri, open_store


@dataclass(frozen=True)
class Exam:
    """A model, and the test patients that it has never seen."""

    place: ModelPlace
    model: Model
    manifest: Manifest
    config: Config
    """The scoring config: data, score and store sections count."""
    patients: list[str]
    leak: str | None = None
    """Why no score of these patients is a result, where slices of theirs were trained on."""


@dataclass(frozen=True)
class ScoreTask:
    """Test patients for one worker, anywhere in the cluster."""

    model: ModelPlace
    shards: str
    config: str
    """The scoring config as JSON: data, score and store sections count, and whether a worker has a GPU."""
    patients: tuple[str, ...]


@dataclass(frozen=True)
class Scored:
    """One patient's evaluation, with a picture of the slice that has the most tumour."""

    evaluation: Evaluation
    slice_number: int
    picture: bytes
    """PNG."""
    slices: PatientSlices
    """Every slice, for the report."""

    @property
    def patient(self) -> str:
        return self.evaluation.score.patient


Parallel = Callable[[Callable[[ScoreTask], list[Scored]], Sequence[ScoreTask]], Iterator[list[Scored]]]
"""Does tasks anywhere, and gives their results as they end."""


def check_unseen(model: Progress, data: PackedData) -> list[str]:
    """The test patients, none of whom the model has seen, unless ``leak`` has something to say.

    Raises:
        InputError: there are none, or some were trained or chosen on.
    """
    patients = data.test().index.patients()
    if not patients:
        raise InputError(
            f"{data.store.uri} has no test patients; pack it with a test share or split.kind=none"
        )
    seen = sorted(set(patients) & set(model.patients))
    if seen and leak(model, data) is None:
        raise InputError(
            f"{len(seen)} of {len(patients)} test patients were trained or chosen on by this model (first: "
            f"{seen[0]}); their scores would mean nothing. Score on the data set the model was trained with, or "
            "on other patients"
        )
    if data.manifest.splits_patients and model.data_id != data.manifest.data_id:
        raise InputError(
            f"{data.store.uri} is split by slice: its volumes have gaps, and scores of them mean nothing; pack the "
            "patients with split.kind=none"
        )
    return patients


def leak(model: Progress, data: PackedData) -> str | None:
    """What is wrong with scores on the model's own data set where its slices, not its patients, were split."""
    if not data.manifest.splits_patients or model.data_id != data.manifest.data_id:
        return None
    patients = data.manifest.patients["test"]
    num_seen = len(set(patients) & set(model.patients))
    return (
        f"slices of these patients were trained on: not a result (split.kind=slice; other slices of {num_seen} of the "
        f"{len(patients)} patients were trained or chosen on)"
    )


def score_patients(task: ScoreTask) -> list[Scored]:
    """Score a task's patients, on one CPU thread.

    Batches never span patients, so the result does not depend on the division.

    Raises:
        InputError: a shard is missing or damaged, or the model's output is not finite; it names shard or patient.
    """
    config = Config.model_validate_json(task.config)
    model = load_model(task.model, config.store, pick_device(0, config.cluster.gpus_per_worker))
    reader = PackedData(task.shards, config.store, config.data).test()
    data = config.data.model_copy(update={"image_size": model.config.data.image_size, "cache": "none"})
    source = SampleSource(reader, data, model.device)
    threads = torch.get_num_threads()
    # A CPU's kernels divide their sums by the number of threads, and calibration sees the last bit.
    torch.set_num_threads(1)
    try:
        return [_score_patient(model, source, patient, config) for patient in task.patients]
    finally:
        torch.set_num_threads(threads)
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
            mirror=model.inference.mirror,
        )
    check_finite(probability, patient)
    prediction, mask = model.inference.mask(probability), truth > 0
    index = source.reader.index
    ids = index.samples_of(patient)
    facts = source.reader.read_facts(int(ids[0]))
    institution = index.institution[ids[0]]
    found = evaluation.evaluate(patient, institution, facts, probability, prediction, mask, config.score)
    # Where truth or prediction has most to show, so that a missed and an imagined tumour are seen alike.
    at = int(np.maximum(mask.sum(axis=(1, 2)), prediction.sum(axis=(1, 2))).argmax())
    image, _ = source.reader.read(int(ids[at]))
    picture = to_png(overlay(image, mask[at], prediction[at]))
    numbers = index.slice_number[ids].tolist()
    images = (source.reader.read(int(sample))[0] for sample in ids)
    slices = patient_slices(patient, numbers, images, mask, prediction, found.score.counts)
    return Scored(found, numbers[at], picture, slices)


def num_tasks(num_patients: int, workers: int) -> int:
    """Parts of about four patients, so that the progress shows and no worker is left with the long end."""
    return min(max(workers, num_patients // 4), num_patients)


def tasks(model: ModelPlace, config: Config, patients: Sequence[str], workers: int) -> list[ScoreTask]:
    """Deal patients out to at most ``workers`` tasks."""
    dealt = [tuple(patients[i::workers]) for i in range(min(workers, len(patients)))]
    return [ScoreTask(model, config.data.shards, config.model_dump_json(), part) for part in dealt]


def prepare(place: ModelPlace, config: Config) -> Exam:
    """Load a model and look up its test patients in ``config.data.shards``.

    Raises:
        InputError: as ``load_model``, ``check_sides`` and ``check_unseen``; or predictions are to be made in another
            way than was chosen for the model.
    """
    model = load_model(place, config.store, torch.device("cpu"))
    check_as_validated(config, model)
    data = PackedData(config.data.shards, config.store)
    check_sides(model, (data.manifest.height, data.manifest.width), config.data.shards)
    patients = check_unseen(model.progress, data)
    return Exam(place, model, data.manifest, config, patients, leak(model.progress, data))


def examine(
    exams: Sequence[Exam], workers: int, parallel: Parallel, progress: Callable[[int, int], None] | None
) -> list[Scored]:
    """Score the patients of all exams, sorted by patient."""
    num_patients = sum(len(exam.patients) for exam in exams)
    scored: list[Scored] = []
    dealt = [
        task
        for exam in exams
        for task in tasks(exam.place, exam.config, exam.patients, num_tasks(len(exam.patients), workers))
    ]
    for part in parallel(score_patients, dealt):
        scored += part
        if progress is not None:
            progress(len(scored), num_patients)
    return sorted(scored, key=lambda s: s.patient)


def run_score(
    place: ModelPlace,
    config: Config,
    workers: int,
    parallel: Parallel,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[str, dict[str, Any]]:
    """Score the test patients of ``config.data.shards`` and write the results beside the model's run.

    Returns the location written to and the content of ``score.json``.

    Raises:
        InputError: as ``prepare`` and ``score_patients``; nothing is written then.
    """
    exam = prepare(place, config)
    scored = examine([exam], workers, parallel, progress)
    model, manifest = exam.model, exam.manifest
    about: dict[str, Any] = {
        "threshold": model.inference.threshold,
        "checkpoint": title(place, model),
        "predicts": model.inference.describe(),
        "inference": model.inference.to_json(),
        "data": {"shards": config.data.shards, "data id": manifest.data_id},
        "config": model.config.model_dump(mode="json"),
    }
    if exam.leak is not None:
        about["leak"] = exam.leak
    if model.progress.data_id != manifest.data_id:
        about["differs"] = _differs(model.progress, config)
    folder = score_folder(model.progress.data_id, manifest.data_id)
    return publish(open_store(place.run, config.store), folder, scored, about, config)


def _differs(model: Progress, config: Config) -> dict[str, Any]:
    """How the test patients of another data set compare with the model's training patients."""
    with closing(PackedData(config.data.shards, config.store).test()) as scored:
        training = None if model.cohort is None else cohort.from_json(model.cohort)
        return cohort.compare(training, cohort.summarise(scored))


def score_folder(model_data_id: str, data_id: str) -> str:
    """Scores on the model's own test patients are ``score``; on another data set they carry its id."""
    return "score" if model_data_id == data_id else f"score-{data_id}"


def publish(
    run: ObjectStore, folder: str, scored: Sequence[Scored], about: dict[str, Any], config: Config
) -> tuple[str, dict[str, Any]]:
    """Put the results of all patients into a folder of ``run``, ``score.json`` last; ``about`` says what was scored."""
    result = {
        **evaluation.result([s.evaluation for s in scored], config.score),
        **about,
        "claim": dict(CLAIM),
        "data": {
            **about["data"],
            "patients": len(scored),
            "slices": sum(len(s.evaluation.score.counts) for s in scored),
        },
        "pictures": {s.patient: s.slice_number for s in scored},
    }
    for item in scored:
        run.put(f"{folder}/overlays/{item.patient}.png", item.picture)
        run.put(f"{folder}/gallery/{item.patient}.json", json.dumps(item.slices).encode())
    with tempfile.TemporaryDirectory() as scratch:
        table = Path(scratch) / "patients.csv"
        write_csv(table, [s.evaluation.score for s in scored])
        run.put(f"{folder}/patients.csv", table.read_bytes())
    run.put(f"{folder}/score.json", (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    return join_uri(run.uri, folder), result


def read_score(run: ObjectStore, folder: str = "score") -> dict[str, Any]:
    """A run's ``score.json``.  Raises ``MissingObject``."""
    result: dict[str, Any] = json.loads(run.get(f"{folder}/score.json"))
    return result
