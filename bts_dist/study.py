"""What prediction asks of a patient's images, whatever format they came in."""

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shards.encode import Pixels
from shards.errors import InputError
from shards.verify import SEQUENCES

INSIDE = 255
"""Grey level of tumour in masks that are pictures."""


class Study(Protocol):
    """One patient's images: three implementations, for pictures, NIfTI and DICOM."""

    @property
    def patient(self) -> str: ...
    @property
    def format(self) -> str: ...
    @property
    def files(self) -> tuple[Path, ...]:
        """The files read."""
        ...

    @property
    def slices_shape(self) -> tuple[int, int, int]:
        """Number, height and width of the axial slices."""
        ...

    @property
    def voxel_mm3(self) -> float | None:
        """Volume of a voxel; None where the spacing is not known."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the result should know."""
        ...

    def read(self) -> Pixels:
        """Axial slices, uint8 (N, H, W, 3): pre-contrast, FLAIR, post-contrast; FLAIR where one is missing.

        Raises:
            InputError: the pixels cannot be read, or are nothing that a model can be shown.
        """
        ...

    def write(self, mask_NHW: NDArray[np.bool_], folder: Path) -> None:
        """Write a mask of the axial slices into an existing folder, in the format and geometry of the input."""


def check_sequences(image_NHWC: Pixels, name: str) -> None:
    """Raise ``InputError`` where a sequence has one value everywhere: as in packing, it is no image."""
    for channel, sequence in enumerate(SEQUENCES):
        values = image_NHWC[..., channel]
        if values.min() == values.max():
            remedy = "restore it" if sequence == "flair" else "copy FLAIR into it"
            raise InputError(
                f"{name} has no {sequence} sequence: it is {values.flat[0]} everywhere; {remedy}"
            )
