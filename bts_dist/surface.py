"""How far two volumes' surfaces lie apart: HD95 and surface Dice.

A surface is the set of a mask's voxels that touch, by a face, a voxel outside the mask; beyond the border of
the array everything is outside.  Distances run between voxel centres, in the unit of the spacing.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]

_ROUNDING = 1e-9
"""Slack of the tolerance, so that three steps of 0.1 mm lie within 0.3 mm in binary floating point too."""


@dataclass(frozen=True)
class SurfaceScores:
    """``None`` stands for undefined: exactly one of the two masks is empty, so one surface does not exist."""

    hd95: float | None
    """In the unit of the spacing; 0 is perfect."""
    surface_dice: float | None
    """Between 0 and 1; 1 is perfect."""


def surface_scores(
    prediction_NHW: Mask,
    truth_NHW: Mask,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    tolerance: float = 2.0,
) -> SurfaceScores:
    """Score one patient's predicted volume against the truth by the distance of their surfaces.

    HD95 is the larger of two 95th percentiles: of the distances from the prediction's surface voxels to the
    truth's surface, and the reverse, each interpolated linearly.  This is what MONAI computes
    (``compute_hausdorff_distance(percentile=95)``, but for its single precision).  MedPy, and through it
    nnU-Net's first version, takes one percentile of both directions' distances pooled: another figure, mostly
    smaller, not to be compared with this one.

    Surface Dice is the share of both surfaces' voxels that lie within ``tolerance`` of the other surface,
    after Nikolov et al. 2018 (arXiv:1809.04430).  They weigh each surface element by its area; here every
    surface voxel counts 1.

    Two empty masks agree: HD95 0 and surface Dice 1.  With exactly one empty both scores are ``None``.

    Args:
        prediction_NHW: bool, slices x rows x columns.
        truth_NHW: bool, of the same shape.
        spacing: distance between neighbouring slices, rows and columns.
        tolerance: largest distance, in the unit of ``spacing``, at which surfaces count as agreeing.

    Raises:
        ValueError: the arrays are not two boolean volumes of one shape.
    """
    _check_volumes(prediction_NHW, truth_NHW)
    has_prediction, has_truth = bool(prediction_NHW.any()), bool(truth_NHW.any())
    if not has_prediction and not has_truth:
        return SurfaceScores(hd95=0.0, surface_dice=1.0)
    if not has_prediction or not has_truth:
        return SurfaceScores(hd95=None, surface_dice=None)

    box = _bounding_box(prediction_NHW | truth_NHW)
    prediction_surface, truth_surface = _surface(prediction_NHW[box]), _surface(truth_NHW[box])
    to_truth = _distances(prediction_surface, truth_surface, spacing)
    to_prediction = _distances(truth_surface, prediction_surface, spacing)
    agreeing = np.concatenate([to_truth, to_prediction]) <= tolerance + _ROUNDING
    return SurfaceScores(
        hd95=float(max(np.percentile(to_truth, 95), np.percentile(to_prediction, 95))),
        surface_dice=float(agreeing.mean()),
    )


def _check_volumes(prediction: Mask, truth: Mask) -> None:
    for name, volume in (("prediction", prediction), ("truth", truth)):
        if volume.dtype != np.bool_ or volume.ndim != 3:
            raise ValueError(f"{name} is {volume.dtype} of shape {volume.shape}; expected a 3-D bool array")
    if prediction.shape != truth.shape:
        raise ValueError(
            f"prediction has shape {prediction.shape} and truth {truth.shape}; they must be equal"
        )


def _bounding_box(mask: Mask) -> tuple[slice, slice, slice]:
    """The smallest box around a mask that is not empty.

    Cropping to it changes nothing: what lies outside is background, as the outside of any array is.
    """
    box: tuple[slice, slice, slice] = ndimage.find_objects(mask.astype(np.uint8))[0]
    return box


def _surface(mask: Mask) -> Mask:
    # scipy's defaults are face neighbours, and background beyond the border
    surface: Mask = mask & ~ndimage.binary_erosion(mask)
    return surface


def _distances(surface: Mask, other: Mask, spacing: tuple[float, float, float]) -> NDArray[np.float64]:
    """Distance from each voxel of ``surface`` to the nearest voxel of ``other``."""
    to_other: NDArray[np.float64] = ndimage.distance_transform_edt(~other, sampling=spacing)
    return to_other[surface]
