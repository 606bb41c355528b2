"""Voxel counts of two masks, as integers, and the ratios of them."""

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Counts = NDArray[np.int64]
"""Voxel counts; the last axis is true positives, false positives, false negatives."""
Ratios = NDArray[np.float64]
Parts = tuple[Counts, Counts]
"""Numerator and denominator of a ratio: of several patients both are added up before the division."""


def count(prediction_NHW: Mask, truth_NHW: Mask) -> Counts:
    """Count true positives, false positives and false negatives of each slice, as int64 of shape (N, 3).

    Raises:
        ValueError: the arrays are not boolean, of three axes and of one shape.
    """
    if prediction_NHW.dtype != np.bool_ or truth_NHW.dtype != np.bool_:
        raise ValueError(f"masks must be bool; got {prediction_NHW.dtype} and {truth_NHW.dtype}")
    if prediction_NHW.shape != truth_NHW.shape or truth_NHW.ndim != 3:
        raise ValueError(
            f"masks must share a shape (N, H, W); got {prediction_NHW.shape} and {truth_NHW.shape}"
        )
    # Slice by slice: numpy counts a whole array many times faster than along axes.
    both = [np.count_nonzero(p & t) for p, t in zip(prediction_NHW, truth_NHW, strict=True)]
    predicted = [np.count_nonzero(p) for p in prediction_NHW]
    true = [np.count_nonzero(t) for t in truth_NHW]
    found = np.array([both, predicted, true], dtype=np.int64)
    return np.stack([found[0], found[1] - found[0], found[2] - found[0]], axis=-1)


def dice(counts: Counts, empty: float = 1.0) -> Ratios:
    """Dice, 2 TP / (2 TP + FP + FN), of counts (..., 3) as float64 (...); ``empty`` where all three are 0."""
    return divide(*dice_parts(counts), empty)


def iou(counts: Counts, empty: float = 1.0) -> Ratios:
    """IoU, TP / (TP + FP + FN), of counts (..., 3) as float64 (...); ``empty`` where all three are 0."""
    return divide(*iou_parts(counts), empty)


def dice_parts(counts: Counts) -> Parts:
    tp, fp, fn = np.moveaxis(counts, -1, 0)
    return 2 * tp, 2 * tp + fp + fn


def iou_parts(counts: Counts) -> Parts:
    tp, fp, fn = np.moveaxis(counts, -1, 0)
    return tp, tp + fp + fn


def sensitivity_parts(counts: Counts) -> Parts:
    """TP / (TP + FN), also called recall: the share of the tumour that is predicted."""
    tp, _, fn = np.moveaxis(counts, -1, 0)
    return tp, tp + fn


def precision_parts(counts: Counts) -> Parts:
    """TP / (TP + FP): the share of the prediction that is tumour."""
    tp, fp, _ = np.moveaxis(counts, -1, 0)
    return tp, tp + fp


def specificity_parts(counts: Counts, voxels: Counts) -> Parts:
    """TN / (TN + FP) of counts (..., 3) out of so many voxels (...)."""
    tp, fp, fn = np.moveaxis(counts, -1, 0)
    healthy = voxels - tp - fn
    return healthy - fp, healthy


def divide(numerator: Counts, denominator: Counts, empty: float) -> Ratios:
    """The ratio as float64, and ``empty`` where the denominator is 0."""
    ratio = np.full(denominator.shape, empty, dtype=np.float64)
    np.divide(numerator, denominator, out=ratio, where=denominator > 0)
    return ratio


def ratio(parts: Parts) -> float | None:
    """One ratio of parts without axes; None where it is 0/0."""
    numerator, denominator = parts
    return float(numerator / denominator) if denominator > 0 else None
