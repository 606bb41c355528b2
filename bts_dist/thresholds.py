"""Scores at many probability thresholds: to choose one on validation patients, and to show what others had given."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bts_dist import counts as of
from bts_dist.counts import Counts, Mask

CURVE = tuple(round(0.05 * i, 2) for i in range(1, 20))
"""Thresholds of the curve that a score shows."""


def count_at(probability_NHW: NDArray[np.float32], truth_NHW: Mask, thresholds: Sequence[float]) -> Counts:
    """Counts of the whole volume where the probability exceeds each of T rising thresholds, int64 (T, 3).

    Every voxel is looked at once, whatever the number of thresholds.
    """
    # numpy compares an array of float32 with a number as float32, and so does this.
    exceeded = np.searchsorted(np.array(thresholds, np.float32), probability_NHW.ravel(), side="left")
    truth = truth_NHW.ravel()
    size = len(thresholds) + 1
    tumour = np.bincount(exceeded[truth], minlength=size)
    healthy = np.bincount(exceeded, minlength=size) - tumour
    # A voxel that exceeds n thresholds is predicted at the first n.
    tp, fp = (np.cumsum(column[::-1])[::-1][1:] for column in (tumour, healthy))
    return np.stack([tp, fp, tumour.sum() - tp], axis=-1).astype(np.int64)


def curve(counts: Sequence[Counts], thresholds: Sequence[float] = CURVE) -> list[dict[str, Any]]:
    """Mean Dice per patient, pooled precision and pooled sensitivity at each threshold, in plain values.

    ``None`` is 0/0: no patient has a prediction at that threshold, or none a tumour.

    Args:
        counts: for each patient the whole-patient counts at each of the T thresholds, int64 (T, 3).
        thresholds: the T thresholds.
    """
    stacked = np.stack(counts)
    pooled, dice = stacked.sum(axis=0), of.dice(stacked).mean(axis=0)
    return [
        {
            "threshold": threshold,
            "dice/patient": float(mean),
            "precision/pooled": of.ratio(of.precision_parts(own)),
            "sensitivity/pooled": of.ratio(of.sensitivity_parts(own)),
        }
        for threshold, mean, own in zip(thresholds, dice, pooled, strict=True)
    ]


def best_threshold(counts: Sequence[Counts], thresholds: Sequence[float]) -> tuple[float, float]:
    """Choose the probability threshold with the highest mean Dice per patient.

    Args:
        counts: for each patient the whole-patient counts at each of the T thresholds, int64 (T, 3).
        thresholds: the T thresholds.

    Returns:
        The threshold and its mean Dice per patient.  Of equals the one nearest 0.5, then the lower one, wins.

    Raises:
        ValueError: there is no patient or no threshold, or an array's shape is not (T, 3).
    """
    expected = (len(thresholds), 3)
    if not counts or not thresholds or any(own.shape != expected for own in counts):
        raise ValueError(
            f"expected counts of shape {expected} for one patient or more, at one threshold or more"
        )
    means = of.dice(np.stack(counts)).mean(axis=0)
    # Sums of the same numbers in another order differ in the last bits: equal to 1e-12 is equal.
    equals = [index for index, mean in enumerate(means) if mean >= means.max() - 1e-12]
    best = min(equals, key=lambda index: (round(abs(thresholds[index] - 0.5), 12), thresholds[index]))
    return float(thresholds[best]), float(means[best])
