"""Intensities of any scanner to the 256 grey levels that the model was trained on."""

import numpy as np
from numpy.typing import NDArray

from shards.encode import Pixels
from shards.errors import InputError

PERCENTILES = (0.1, 99.9)
"""Of a volume's intensities: they become 0 and 255, and what lies beyond is cut off."""


def to_grey_levels(volume: NDArray[np.generic], name: str) -> Pixels:
    """A volume of whole or real numbers as uint8 of the same shape.

    8-bit volumes stay as they are.  Others are mapped linearly, by two percentiles of the whole volume, air included:
    a few voxels of bright fat or of an artefact do not take the contrast away.  Normalisation, which follows, takes
    out any gain and offset, so the percentiles decide only how finely grey levels are told apart.

    Raises:
        InputError: the values are no real numbers, some are not finite, or there is nothing to see; it says ``name``.
    """
    if volume.dtype.kind not in "iuf":
        raise InputError(
            f"{name} holds {volume.dtype} values, not one real number a voxel; export one sequence as grey levels"
        )
    broken = int(np.count_nonzero(~np.isfinite(volume)))
    if broken:
        raise InputError(f"{name} holds {broken} values that are NaN or infinite; replace them by 0")
    levels = volume.astype(np.float64)
    exact = volume.dtype == np.uint8
    low, high = (float(v) for v in np.percentile(levels, (0, 100) if exact else PERCENTILES))
    if low == high:
        raise InputError(f"{name} is {low:g} (nearly) everywhere: there is nothing to see; export it again")
    if exact:
        return volume.astype(np.uint8, copy=False)
    return np.rint(np.clip((levels - low) / (high - low), 0, 1) * 255).astype(np.uint8)
