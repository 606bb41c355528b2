"""Cross-validation's table: every patient scored once, by the model of the fold that held the patient out."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bts_dist.config import Config
from bts_dist.counts import iou
from bts_dist.inference import describe_all
from bts_dist.model import ModelPlace, title
from bts_dist.patients import PatientScore
from bts_dist.score import Exam, Parallel, Scored, examine, prepare, publish
from shards.errors import InputError
from shards.store import ObjectStore

FOLDER = "score"
FIGURES = ("dice/patient", "iou/pooled")
"""What is given fold by fold."""


def score_out_of_fold(
    folds: Sequence[tuple[ModelPlace, Config]],
    run: ObjectStore,
    workers: int,
    parallel: Parallel,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[str, dict[str, Any]]:
    """Score each fold's model on the fold's test patients, and put the table of all of them into ``run``.

    ``folds`` are models, each with the config of its data set.  Each model keeps its own threshold, which was chosen
    on its own validation patients.  Returns the location written to and the content of ``score.json``; its patients
    say which fold they were in, ``folds`` what each fold scored, and ``over_folds`` mean and spread of that.

    Raises:
        InputError: as ``score.prepare``; or the folds are not those of one split, so that a patient is in several.
    """
    exams = [prepare(place, config) for place, config in folds]
    fold_of = _fold_of(exams)
    scored = [_in_fold(each, fold_of) for each in examine(exams, workers, parallel, progress)]
    entries = [
        _entry(number, exam, [each.evaluation.score for each in scored if fold_of[each.patient] == number])
        for number, exam in enumerate(exams)
    ]
    about = {
        "threshold": [exam.model.inference.threshold for exam in exams],
        "checkpoint": f"{len(exams)} models, each patient scored by the one that never saw it",
        "predicts": f"each fold in its own way: {describe_all([exam.model.inference for exam in exams])}",
        "data": {
            "shards": ", ".join(exam.config.data.shards for exam in exams),
            "data id": ", ".join(exam.manifest.data_id for exam in exams),
        },
        "folds": entries,
        "over_folds": over_folds([{name: entry[name] for name in FIGURES} for entry in entries]),
        "fold_of": fold_of,
        "config": exams[0].model.config.model_dump(mode="json"),
    }
    return publish(run, FOLDER, scored, about, exams[0].config)


def _entry(number: int, exam: Exam, scores: Sequence[PatientScore]) -> dict[str, Any]:
    return {
        "fold": number,
        "run": exam.place.run,
        "checkpoint": title(exam.place, exam.model),
        "threshold": exam.model.inference.threshold,
        "inference": exam.model.inference.to_json(),
        "patients": exam.patients,
        **fold_figures(scores),
    }


def fold_figures(scores: Sequence[PatientScore]) -> dict[str, float]:
    """``FIGURES`` of one fold's patients, who are at least one."""
    total = np.sum([score.total for score in scores], axis=0)
    values = float(np.mean([score.dice for score in scores])), float(iou(total))
    return dict(zip(FIGURES, values, strict=True))


def over_folds(figures: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation (n - 1) over the folds, which are at least two, of each of their figures.

    The folds count alike, however many patients they have.  Their trainings share patients, so the deviation divided
    by the root of the number of folds is no standard error (Bengio & Grandvalet 2004).
    """
    columns = {name: [fold[name] for fold in figures] for name in figures[0]}
    return {
        name: {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1))}
        for name, values in columns.items()
    }


def _in_fold(scored: Scored, fold_of: dict[str, int]) -> Scored:
    """The same with the patient's fold in the score."""
    evaluation = scored.evaluation
    score = replace(evaluation.score, fold=fold_of[scored.patient])
    return replace(scored, evaluation=replace(evaluation, score=score))


def _fold_of(exams: Sequence[Exam]) -> dict[str, int]:
    """The fold that each patient is tested in."""
    fold_of: dict[str, int] = {}
    for number, exam in enumerate(exams):
        for patient in exam.patients:
            if patient in fold_of:
                raise InputError(
                    f"patient {patient} is tested in folds {fold_of[patient]} and {number}; their data sets come from "
                    "different splits: pack them again with the same split.seed and split.folds"
                )
            fold_of[patient] = number
    everyone = {
        patient for exam in exams for patients in exam.manifest.patients.values() for patient in patients
    }
    missing = sorted(everyone - fold_of.keys())
    if missing:
        raise InputError(
            f"{len(missing)} patients are tested in no fold (first: {missing[0]}); score all folds of one split"
        )
    return dict(sorted(fold_of.items()))
