"""Masks of tumours for images that nobody has drawn any for, beside overlays, volumes and how they were made.

A slice takes the very path that it takes in scoring: the same pixels, the same figures of normalisation, the same
batches, the same way from probabilities to a mask.  So files that were packed get the masks here that their shards
are scored on.
"""

import csv
import hashlib
import json
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bts_dist import memory
from bts_dist.config import Config
from bts_dist.data import Batch
from bts_dist.model import Model, ModelPlace, check_as_validated, model_id, title
from bts_dist.model_limits import check_finite, check_sides
from bts_dist.predict import predict_slices
from bts_dist.study import Study
from shards.encode import Pixels
from shards.errors import InputError
from shards.layout import patient_of
from shards.picture import overlay, to_png
from shards.reader import resized
from shards.verify import head_figures, missing_sequences, recorded

RECORD, VOLUMES = "prediction.json", "volumes.csv"
PACKAGES = ("bts-dist", "torch", "numpy", "pillow", "nibabel", "pydicom")
TWICE_UP_TO_PX = 320
"""Overlays of slices up to this width are drawn at twice their size."""

Progress = Callable[[int, int], None]
Row = dict[str, Any]


def run_prediction(
    place: ModelPlace,
    model: Model,
    config: Config,
    studies: Sequence[Study],
    out: Path,
    progress: Progress | None = None,
) -> Row:
    """Predict on ``studies``, as ``find_studies`` gives them, and write a new folder.

    ``out`` is there when it is whole.
    Of ``config`` the store and the batch count; all else is the checkpoint's.  ``progress`` gets slices done and all.
    Returns the content of ``prediction.json``.

    Raises:
        InputError: the input is unfit, ``out`` is taken, or the model gives no numbers; it names the file.
    """
    check_as_validated(config, model)
    check_free(out)
    for study in studies:
        _check_size(model, study)
    total = sum(study.slices_shape[0] for study in studies)
    rows: list[Row] = []
    with _whole(out) as folder:
        for study in studies:
            rows.append(_predict_study(model, config, study, folder))
            if progress is not None:
                progress(sum(row["slices"] for row in rows), total)
        record = _record(place, model, config, rows)
        _write_volumes(folder / VOLUMES, rows)
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def study_probabilities(model: Model, image_NHWC: Pixels, batch: int) -> NDArray[np.float32]:
    """Probabilities (N, H, W) at native size of a whole volume's slices, uint8 (N, H, W, 3)."""
    size = (image_NHWC.shape[1], image_NHWC.shape[2])
    return predict_slices(
        model.network,
        _batches(image_NHWC, sides(model, size), batch),
        size,
        device=model.device,
        precision=model.config.train.precision,
        mirror=model.inference.mirror,
    )


def sides(model: Model, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of what the model sees of slices of ``size``."""
    side = model.config.data.image_size
    return size if side is None else (side, side)


def _batches(image_NHWC: Pixels, sides: tuple[int, int], batch: int) -> Iterator[Batch]:
    mean, std = (torch.tensor(recorded(f), dtype=torch.float32) for f in head_figures(image_NHWC))
    for start in range(0, len(image_NHWC), batch):
        part = np.stack([resized(image_HWC, sides) for image_HWC in image_NHWC[start : start + batch]])
        num = len(part)
        truth = torch.zeros((num, *sides), dtype=torch.uint8)  # unknown, and not looked at
        ids = np.arange(start, start + num)
        yield Batch(ids, torch.from_numpy(part), truth, mean.expand(num, 3), std.expand(num, 3))


def _predict_study(model: Model, config: Config, study: Study, folder: Path) -> Row:
    image_NHWC = study.read()
    size = (image_NHWC.shape[1], image_NHWC.shape[2])
    with memory.explained(
        memory.in_scoring, config, model.config, model.device, study.patient, sides(model, size)
    ):
        probability = study_probabilities(model, image_NHWC, config.score.batch)
    check_finite(probability, study.patient)
    mask_NHW = model.inference.mask(probability)
    masks, overlays = (folder / name / study.patient for name in ("masks", "overlays"))
    masks.mkdir(parents=True)
    overlays.mkdir(parents=True)
    study.write(mask_NHW, masks)
    _draw(image_NHWC, mask_NHW, overlays)
    return _row(model, study, image_NHWC, mask_NHW)


def _draw(image_NHWC: Pixels, mask_NHW: NDArray[np.bool_], folder: Path) -> None:
    """A picture of each slice with tumour, or of the middle one where there is none."""
    shown = np.flatnonzero(mask_NHW.any(axis=(1, 2)))
    scale = 2 if image_NHWC.shape[2] <= TWICE_UP_TO_PX else 1
    for index in shown if len(shown) else [len(mask_NHW) // 2]:
        picture = overlay(image_NHWC[index], None, mask_NHW[index], scale=scale)
        (folder / f"{index + 1:04d}.png").write_bytes(to_png(picture))


def _row(model: Model, study: Study, image_NHWC: Pixels, mask_NHW: NDArray[np.bool_]) -> Row:
    voxels = int(np.count_nonzero(mask_NHW))
    notes = list(study.notes)
    if patient_of(study.patient) in model.progress.patients:
        notes.append(
            "the model was trained or chosen on this patient: the mask says nothing of how good it is"
        )
    num, height, width = study.slices_shape
    return {
        "patient": study.patient,
        "format": study.format,
        "slices": num,
        "tumour_slices": int(np.count_nonzero(mask_NHW.any(axis=(1, 2)))),
        "tumour_voxels": voxels,
        "voxel_mm3": study.voxel_mm3,
        "tumour_ml": None if study.voxel_mm3 is None else voxels * study.voxel_mm3 / 1000,
        "slice_shape": [height, width],
        "missing": list(missing_sequences(image_NHWC)),
        "notes": notes,
        "files": {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in study.files},
    }


def _record(place: ModelPlace, model: Model, config: Config, rows: Sequence[Row]) -> Row:
    return {
        "model": {
            "checkpoint": place.uri,
            "sha256": model_id(place, config.store),
            "title": title(place, model),
            "epoch": model.progress.epoch,
            "predicts": model.inference.describe(),
            "threshold": model.inference.threshold,
            "inference": model.inference.to_json(),
            "data id": model.progress.data_id,
            "device": str(model.device),
            "batch": config.score.batch,
        },
        "patients": list(rows),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "config": model.config.model_dump(mode="json"),
    }


def _write_volumes(path: Path, rows: Sequence[Row]) -> None:
    """A row per patient; what is not known is an empty cell."""
    names = [name for name, value in rows[0].items() if not isinstance(value, list | dict)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def _check_size(model: Model, study: Study) -> None:
    num, height, width = study.slices_shape
    check_sides(model, (height, width), study.patient)
    if num * height * width == 0:
        raise InputError(f"{study.patient} has no pixels; export it again")


def check_free(out: Path) -> None:
    """Raise ``InputError`` where ``out`` is a file or a folder with something in it."""
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out} is a file; name a new folder for the masks")
    held = sorted(path.name for path in out.iterdir())
    if held:
        what = "a prediction" if RECORD in held else "other things"
        raise InputError(
            f"{out} holds {what} already ({', '.join(held[:3])}); delete it or name a new folder"
        )


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its name when all is written, and is gone when something fails."""
    out = out.absolute()
    unfinished = out.with_name(f"{out.name}.partial")
    try:
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{unfinished}: cannot be created ({error}); name another folder") from error
    try:
        yield unfinished
        unfinished.replace(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
