"""Whether a probability of 0.8 is right 8 times in 10: reliability curve, expected calibration error, Brier score.

Probabilities are those of tumour, and the event is that the voxel is tumour.  (Guo et al. 2017 take the probability
of the likelier class and the event that it is right; with two classes that folds the curve at one half.)
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bts_dist.counts import Counts, Mask, Parts
from bts_dist.estimates import Draws, Estimate, interval
from bts_dist.surface import bounding_box

Probabilities = NDArray[np.float32]

BINS = 15
"""Bins of equal width, as Guo et al. take; each holds its upper end, the first 0 too."""
NEAR_PX = 5
"""Rows and columns around tumour and prediction that still belong to the region ``near``."""

_PART = 2**24
"""Sums of probabilities are counted in parts of one: whole numbers add up to the same in any order.  A float32 from
one half on is a multiple of this part; rounding moves one below by no more than 3e-8."""
RULES = {
    "all": "every voxel; most are far from any tumour and easy, which flatters",
    "near": f"voxels within {NEAR_PX} rows and columns of tumour or prediction; a patient with neither adds nothing",
}


def near(prediction_NHW: Mask, truth_NHW: Mask) -> Mask:
    """The voxels of tumour or prediction, and those up to ``NEAR_PX`` rows and columns away in the same slice."""
    union = prediction_NHW | truth_NHW
    region = np.zeros_like(union)
    if union.any():
        first, rows, columns = bounding_box(union)
        box = (
            first,
            *(slice(max(side.start - NEAR_PX, 0), side.stop + NEAR_PX) for side in (rows, columns)),
        )
        width = 2 * NEAR_PX + 1
        region[box] = ndimage.maximum_filter(union[box], size=(1, width, width), mode="constant")
    return region


def count_by_bin(probability: Probabilities, truth: Mask) -> Counts:
    """What calibration is computed from, as whole numbers that add up over patients: int64 (BINS, 4).

    For each bin: voxels, tumour voxels, the sum of their probabilities, and of the squared differences between
    probability and truth, both in parts of ``2**-24``.

    Args:
        probability: float32, of any shape.
        truth: bool, of the same shape.
    """
    p, y = probability.ravel().astype(np.float64), truth.ravel()
    bin_ = np.searchsorted(np.arange(1, BINS) / BINS, p, side="left")
    columns = (None, y, np.rint(p * _PART), np.rint((p - y) ** 2 * _PART))
    # Sums of whole numbers below 2**53 are exact as float64: half a thousand million voxels a patient.
    return np.stack([np.bincount(bin_, column, BINS) for column in columns], axis=-1).astype(np.int64)


def reliability(counts: Sequence[Counts], region: str, draws: Draws) -> dict[str, Any] | None:
    """Calibration over all patients in plain values; ``None`` where the region has no voxel.

    The expected calibration error is the mean over voxels of |tumour share - mean probability| of their bin (Guo et
    al. 2017, arXiv:1706.04599); the Brier score that of (probability - truth)^2 (Brier 1950).  Voxels of all patients
    are pooled; intervals are over patients.

    Args:
        counts: of each patient, int64 (BINS, 4), in the order that ``draws`` counts them in.
        region: ``all`` or ``near``.
        draws: the resamples.
    """
    each = np.stack(counts)
    together = each.sum(axis=0)
    if not together.any():
        return None
    resampled = np.tensordot(draws, each, axes=1)  # (resamples, BINS, 4)
    figures = {
        name: asdict(_estimate(parts, each, together, resampled, RULES[region]))
        for name, parts in (("ece", _ece_parts), ("brier", _brier_parts))
    }
    return figures | {"bins": [_bin(number, *own.tolist()) for number, own in enumerate(together)]}


def _ece_parts(sums: Counts) -> Parts:
    voxels, tumour, probability, _ = np.moveaxis(sums, -1, 0)
    return abs(tumour * _PART - probability).sum(axis=-1), voxels.sum(axis=-1) * _PART


def _brier_parts(sums: Counts) -> Parts:
    voxels, _, _, squares = np.moveaxis(sums, -1, 0)
    return squares.sum(axis=-1), voxels.sum(axis=-1) * _PART


def _estimate(
    parts: Callable[[Counts], Parts], each: Counts, together: Counts, resampled: Counts, rule: str
) -> Estimate:
    """A figure of the bins, which unlike a row of the table is no ratio of sums over patients."""
    numerators, denominators = parts(resampled)
    has_value = denominators > 0
    low, high = interval(numerators[has_value] / denominators[has_value])
    numerator, denominator = parts(together)
    num_patients = int(each[:, :, 0].any(axis=1).sum())
    return Estimate(float(numerator / denominator), None, low, high, num_patients, rule)


def _bin(number: int, voxels: int, tumour: int, probability: int, _: int) -> dict[str, Any]:
    return {
        "low": number / BINS,
        "high": (number + 1) / BINS,
        "voxels": voxels,
        "tumour": tumour,
        "mean_probability": probability / voxels / _PART if voxels else None,
        "tumour_share": tumour / voxels if voxels else None,
    }
