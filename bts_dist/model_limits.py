"""What a model needs of the slices that it is given, and what its output must be to mean anything."""

import numpy as np

from bts_dist.calibration import Probabilities
from bts_dist.model import Model
from shards.errors import InputError


def check_sides(model: Model, size: tuple[int, int], name: str) -> None:
    """Raise ``InputError``, which says ``name``, where the model cannot see slices of height and width ``size``."""
    side = model.config.data.image_size
    step = 2 ** (model.config.model.depth - 1)
    if any(each % step for each in (size if side is None else (side, side))):
        raise InputError(
            f"{name}: axial slices are {size[0]}×{size[1]} pixels, and the model, which sees slices at their own "
            f"size, needs sides that are multiples of {step}; pad or resample the images, or name a model that was "
            "trained with a data.image_size"
        )


def check_finite(probability_NHW: Probabilities, patient: str) -> None:
    """Raise ``InputError`` where a patient's probabilities, float32 (slices, H, W), are not all finite.

    NaN is above no threshold: it would pass for a model that sees no tumour.
    """
    wrong = int(np.count_nonzero(~np.isfinite(probability_NHW).all(axis=(1, 2))))
    if wrong:
        raise InputError(
            f"{patient}: the model's output is not finite in {wrong} of {len(probability_NHW)} slices, so this "
            "checkpoint is of no use; name another checkpoint (RUN/checkpoints/step-…), or train again with a lower "
            "optim.lr or train.precision=fp32"
        )
