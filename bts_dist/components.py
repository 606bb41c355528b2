"""Which connected components of a predicted mask are kept: all, the largest, or those of so many voxels.

A component is connected in 3D, where voxels that share a face, an edge or a corner belong together (26 neighbours).
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bts_dist.counts import Counts, Mask
from bts_dist.surface import bounding_box

Keep = Literal["all", "largest"] | int
"""A number is the fewest voxels that a component must have."""

OPTIONS: tuple[Keep, ...] = ("all", 10, 30, 100, 300, 1000, "largest")
"""What is tried, in order of preference: of equals the one that throws least away."""

_NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)


def keep_components(mask_NHW: Mask, keep: Keep) -> Mask:
    """The mask of a whole volume, bool (slices, H, W), without the components that ``keep`` drops."""
    if keep == "all" or not mask_NHW.any():
        return mask_NHW
    box = bounding_box(mask_NHW)
    labels, _ = ndimage.label(mask_NHW[box], _NEIGHBOURS)
    kept = np.zeros_like(mask_NHW)
    kept[box] = _kept(np.bincount(labels.ravel()), keep)[labels]
    return kept


def count_components(prediction_NHW: Mask, truth_NHW: Mask, options: Sequence[Keep]) -> Counts:
    """TP, FP and FN of the whole volume with each of O options, int64 (O, 3); the mask is labelled once."""
    true = np.count_nonzero(truth_NHW)
    if not prediction_NHW.any():
        return np.tile(np.array([0, 0, true], dtype=np.int64), (len(options), 1))
    box = bounding_box(prediction_NHW)
    labels, num = ndimage.label(prediction_NHW[box], _NEIGHBOURS)
    sizes = np.bincount(labels.ravel())
    hits = np.bincount(labels[truth_NHW[box]], minlength=num + 1)
    kept = np.stack([_kept(sizes, option) for option in options])
    tp, predicted = kept @ hits, kept @ sizes
    return np.stack([tp, predicted - tp, true - tp], axis=-1).astype(np.int64)


def _kept(sizes: NDArray[np.int64], keep: Keep) -> Mask:
    """Which labels stay, given the voxels of each; label 0 is the background and never does."""
    own = sizes.copy()
    own[0] = 0
    if keep == "all":
        kept = own > 0
    elif keep == "largest":
        kept = np.arange(len(own)) == own.argmax()
    else:
        kept = own >= max(keep, 1)
    return kept
