"""How far two volumes' surfaces lie apart: HD95, average surface distance and surface Dice.

A surface is the set of a mask's voxels that touch, by a face, a voxel outside the mask; beyond the border of
the array everything is outside.  Distances run between voxel centres, in the unit of the spacing.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from bts_dist.counts import Mask

Spacing = tuple[float, float, float]
"""Distance between neighbouring slices, rows and columns."""
Box = tuple[slice, slice, slice]

_REACH = 3
"""Voxels in each direction of the steps that are tried one by one."""
_ROUNDING = 1e-9
"""Slack of the tolerance, so that three steps of 0.1 mm lie within 0.3 mm in binary floating point too."""


@dataclass(frozen=True)
class SurfaceScores:
    """A distance of ``None`` is undefined: exactly one of the two masks is empty, so one surface does not exist."""

    hd95: float | None
    """In the unit of the spacing; 0 is perfect.  ``asd`` likewise."""
    asd: float | None
    surface_dice: float
    """Between 0 and 1; 1 is perfect."""


@dataclass(frozen=True)
class Surfaces:
    """Both surfaces' voxels, from which scores follow for any spacing."""

    prediction: NDArray[np.int64]
    """Positions of the surface's voxels, (n, 3), in slices, rows and columns; none where the mask is empty."""
    truth: NDArray[np.int64]


def find_surfaces(prediction_NHW: Mask, truth_NHW: Mask) -> Surfaces:
    """Find the surfaces of one patient's predicted volume and of the truth, bool (slices, rows, columns).

    Raises:
        ValueError: the arrays are not two boolean volumes of one shape.
    """
    _check_volumes(prediction_NHW, truth_NHW)
    union = prediction_NHW | truth_NHW
    if not union.any():
        nothing = np.empty((0, 3), dtype=np.int64)
        return Surfaces(nothing, nothing)
    # Cropping changes nothing: what lies outside is background, as the outside of any array is.
    box = bounding_box(union)
    return Surfaces(
        *(np.argwhere(_surface(mask[box])).astype(np.int64) for mask in (prediction_NHW, truth_NHW))
    )


def surface_scores(
    surfaces: Surfaces, spacing: Spacing = (1.0, 1.0, 1.0), tolerance: float = 2.0
) -> SurfaceScores:
    """Score a predicted volume against the truth by the distance of their surfaces.

    HD95 is the larger of two 95th percentiles: of the distances from the prediction's surface voxels to the
    truth's surface, and the reverse, each interpolated linearly.  This is what MONAI computes
    (``compute_hausdorff_distance(percentile=95)``, but for its single precision).  MedPy, and through it
    nnU-Net's first version, takes one percentile of both directions' distances pooled: another figure, mostly
    smaller, not to be compared with this one.

    The average surface distance is the mean of both directions' distances together (Heimann et al. 2009;
    ``compute_average_surface_distance(symmetric=True)`` of MONAI).

    Surface Dice is the share of both surfaces' voxels that lie within ``tolerance`` of the other surface,
    after Nikolov et al. 2018 (arXiv:1809.04430).  They weigh each surface element by its area; here every
    surface voxel counts 1.

    Two empty masks agree: distances 0 and surface Dice 1.  With exactly one empty no voxel of the other's surface lies
    near a surface: surface Dice 0, as in MONAI; distances are ``None``.

    Args:
        surfaces: of prediction and truth.
        spacing: distance between neighbouring slices, rows and columns.
        tolerance: largest distance, in the unit of ``spacing``, at which surfaces count as agreeing.
    """
    has_prediction, has_truth = len(surfaces.prediction) > 0, len(surfaces.truth) > 0
    if not has_prediction and not has_truth:
        return SurfaceScores(hd95=0.0, asd=0.0, surface_dice=1.0)
    if not has_prediction or not has_truth:
        return SurfaceScores(hd95=None, asd=None, surface_dice=0.0)
    to_truth = _distances(surfaces.prediction, surfaces.truth, spacing)
    to_prediction = _distances(surfaces.truth, surfaces.prediction, spacing)
    both = np.concatenate([to_truth, to_prediction])
    return SurfaceScores(
        hd95=float(max(np.percentile(to_truth, 95), np.percentile(to_prediction, 95))),
        asd=float((to_truth.sum() + to_prediction.sum()) / len(both)),
        surface_dice=float((both <= tolerance + _ROUNDING).mean()),
    )


def bounding_box(mask: Mask) -> Box:
    """The smallest box around a volume's mask that is not empty."""
    in_plane = np.logical_or.reduce(mask, axis=0)
    sides: tuple[Mask, ...] = (
        np.logical_or.reduce(mask, axis=(1, 2)),
        np.logical_or.reduce(in_plane, axis=1),
        np.logical_or.reduce(in_plane, axis=0),
    )
    first, rows, columns = (slice(int(side.argmax()), len(side) - int(side[::-1].argmax())) for side in sides)
    return first, rows, columns


def _check_volumes(prediction: Mask, truth: Mask) -> None:
    for name, volume in (("prediction", prediction), ("truth", truth)):
        if volume.dtype != np.bool_ or volume.ndim != 3:
            raise ValueError(f"{name} is {volume.dtype} of shape {volume.shape}; expected a 3-D bool array")
    if prediction.shape != truth.shape:
        raise ValueError(
            f"prediction has shape {prediction.shape} and truth {truth.shape}; they must be equal"
        )


def _surface(mask: Mask) -> Mask:
    inner = np.zeros_like(mask)
    centre = (slice(1, -1),) * 3
    inner[centre] = mask[centre]
    for axis in range(3):
        for side in (slice(None, -2), slice(2, None)):
            inner[centre] &= mask[(*centre[:axis], side, *centre[axis + 1 :])]
    surface: Mask = mask & ~inner
    return surface


def _distances(surface: NDArray[np.int64], other: NDArray[np.int64], spacing: Spacing) -> NDArray[np.float64]:
    """Distance from each voxel of ``surface`` to the nearest voxel of ``other``.

    Most voxels of two surfaces that are worth comparing have the other one within a few steps, so these are tried in
    the order of their lengths.  A search tree finds what is further away.  A distance transform, in their place, would
    compute every voxel of the box, of which surfaces are a small part.
    """
    shape = np.maximum(surface.max(axis=0), other.max(axis=0)) + 1 + 2 * _REACH
    is_other = np.zeros(np.prod(shape), dtype=bool)
    is_other[np.ravel_multi_index(tuple((other + _REACH).T), tuple(shape))] = True
    place = np.ravel_multi_index(tuple((surface + _REACH).T), tuple(shape))
    distances = np.empty(len(surface))
    left = np.arange(len(surface))
    for length, steps in _short_steps(spacing):
        strides = steps @ [shape[1] * shape[2], shape[2], 1]
        found = is_other[place[left] + strides[:, None]].any(axis=0)
        distances[left[found]] = length
        left = left[~found]
    if len(left):
        nearest = KDTree(other * spacing).query(surface[left] * spacing)[1]
        # From whole steps: the tree's own figure is the difference of two rounded positions.
        distances[left] = _lengths(surface[left] - other[nearest], spacing)
    return distances


def _short_steps(spacing: Spacing) -> Iterator[tuple[float, NDArray[np.int64]]]:
    """Steps (n, 3) by their length, from 0 on, for as long as none can be missing."""
    each = np.arange(-_REACH, _REACH + 1)
    steps = np.stack(np.meshgrid(each, each, each, indexing="ij"), axis=-1).reshape(-1, 3)
    lengths = _lengths(steps, spacing)
    for length in np.unique(lengths[lengths < (_REACH + 1) * min(spacing)]):
        yield float(length), steps[lengths == length]


def _lengths(steps: NDArray[np.int64], spacing: Spacing) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.sqrt(((steps * spacing) ** 2).sum(axis=1))
    return lengths
