"""Validation after each epoch: integer counts per slice on the validation patients, at several thresholds.

Patients are dealt out over the ranks and the counts added up, so the figures do not depend on the world size.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bts_dist import memory
from bts_dist.account import Account
from bts_dist.config import Config
from bts_dist.counts import count, dice, iou
from bts_dist.data import SampleSource
from bts_dist.overlays import SliceOverlay
from bts_dist.predict import predict_patient
from bts_dist.runtime import Runtime, all_reduce
from bts_dist.thresholds import best_threshold
from shards.picture import to_rgb

THRESHOLDS = tuple(round(0.1 * i, 1) for i in range(1, 10))
"""Candidate probability thresholds.  Few, since the validation patients are few."""

SliceCounts = NDArray[np.int64]


@dataclass(frozen=True)
class Validation:
    """What one validation found."""

    dice: float
    """``dice/patient`` at a threshold of one half, which chooses the epoch."""
    threshold: float
    """The threshold with the highest ``dice/patient``, for use in scoring."""
    metrics: dict[str, float]


def validate(
    model: nn.Module, source: SampleSource, config: Config, runtime: Runtime, account: Account
) -> Validation:
    """Score ``model`` on all validation patients; every rank returns the same."""
    index = source.reader.index
    # Longest first, dealt in turn: ranks finish at about the same time.
    patients = sorted(index.patients(), key=lambda p: (-len(index.samples_of(p)), p))
    counts = torch.zeros(len(THRESHOLDS), len(index), 3, dtype=torch.int64)
    for patient in patients[runtime.rank :: runtime.world_size]:
        # Each patient by itself, so that a rank that stands still is told from one with many.
        with (
            account.doing("validation"),
            memory.explained(memory.in_validation, config, runtime, patient, source.sides),
        ):
            found = _count(model, source, patient, config, runtime.device)
        counts[:, index.samples_of(patient)] = torch.from_numpy(found)
    # Each rank's counts are nought where another's are not, so their sum holds them all.
    with account.doing("validation_wait"):
        gathered = all_reduce(counts.to(runtime.device)).cpu().numpy()
    return _summarise([gathered[:, index.samples_of(p)] for p in index.patients()])


def draw_overlays(
    model: nn.Module, source: SampleSource, config: Config, device: torch.device
) -> list[SliceOverlay]:
    """The slice with the most tumour of a few validation patients, with truth and prediction."""
    index = source.reader.index
    pictures: list[SliceOverlay] = []
    for patient in index.patients()[: config.track.overlays]:
        ids = index.samples_of(patient)
        at = int(index.tumour_pixels[ids].argmax())
        probability, truth = _predict(model, source, patient, config, device)
        image, _ = source.reader.read(int(ids[at]))
        number = int(index.slice_number[ids[at]])
        pictures.append(SliceOverlay(patient, number, to_rgb(image), truth[at] > 0, probability[at] > 0.5))
    return pictures


def _predict(
    model: nn.Module, source: SampleSource, patient: str, config: Config, device: torch.device
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    probability, truth = predict_patient(
        model,
        source,
        patient,
        device=device,
        batch=config.score.batch,
        precision=config.train.precision,
        mirror=config.score.mirror,
    )
    if not np.isfinite(probability).all():
        # NaN is above no threshold: it would pass for a model that sees no tumour.
        raise FloatingPointError(f"validation: the model's output for {patient} is not finite")
    return probability, truth


def _count(
    model: nn.Module, source: SampleSource, patient: str, config: Config, device: torch.device
) -> SliceCounts:
    """tp, fp, fn of each slice at each threshold; int64 (thresholds, slices, 3)."""
    probability, truth = _predict(model, source, patient, config, device)
    return np.stack([count(probability > t, truth > 0) for t in THRESHOLDS])


def _summarise(counts: list[SliceCounts]) -> Validation:
    """The figures of a validation from each patient's counts, int64 (thresholds, slices, 3)."""
    at_half = THRESHOLDS.index(0.5)
    threshold, tuned = best_threshold([c.sum(axis=1) for c in counts], THRESHOLDS)
    slices = np.concatenate([c[at_half] for c in counts])
    mean = float(np.mean([dice(c[at_half].sum(axis=0)) for c in counts]))
    return Validation(
        mean,
        threshold,
        {
            "val/dice/patient": mean,
            "val/dice/patient_tuned": tuned,
            "val/threshold": threshold,
            "val/dice/slice": float(dice(slices).mean()),
            "val/dice/pooled": float(dice(slices.sum(axis=0))),
            "val/iou/pooled": float(iou(slices.sum(axis=0))),
        },
    )
