"""Cross-validation's table: every patient scored once, by the model of the fold that held the patient out."""

from collections.abc import Callable, Sequence
from typing import Any

from bts_dist.config import Config
from bts_dist.model import ModelPlace, title
from bts_dist.score import Exam, Parallel, examine, prepare, publish
from shards.errors import InputError
from shards.store import ObjectStore

FOLDER = "score"


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
    say which fold they were in.

    Raises:
        InputError: as ``score.prepare``; or the folds are not those of one split, so that a patient is in several.
    """
    exams = [prepare(place, config) for place, config in folds]
    fold_of = _fold_of(exams)
    scored = examine(exams, workers, parallel, progress)
    about = {
        "threshold": [exam.model.inference.threshold for exam in exams],
        "checkpoint": f"{len(exams)} models, each patient scored by the one that never saw it",
        "data": {
            "shards": ", ".join(exam.config.data.shards for exam in exams),
            "data id": ", ".join(exam.manifest.data_id for exam in exams),
        },
        "folds": [
            {
                "fold": number,
                "run": exam.place.run,
                "checkpoint": title(exam.place, exam.model),
                "threshold": exam.model.inference.threshold,
                "inference": exam.model.inference.to_json(),
                "patients": exam.patients,
            }
            for number, exam in enumerate(exams)
        ],
        "fold_of": fold_of,
        "config": exams[0].model.config.model_dump(mode="json"),
    }
    return publish(run, FOLDER, scored, about, exams[0].config)


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
