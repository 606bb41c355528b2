"""Axial slices of a volume that may lie in any orientation, and the way back onto its own grid.

Axes are only swapped and flipped, never resampled: of an oblique volume each axis takes the anatomical direction
that it is nearest to.
"""

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError

SHOWN = ("P", "L", "S")
"""Where rows, columns and slices go: down to posterior, right to the patient's left, up to superior.  It is how
radiologists look at axial slices, and how the Kaggle set's lie."""

OBLONG = 1.25
"""A pixel with sides this far apart looks too unlike the square ones of training to go unsaid."""


@dataclass(frozen=True, eq=False)
class AxialView:
    """A volume's grid: voxel indices to millimetres, right-anterior-superior (RAS+)."""

    affine: NDArray[np.float64]
    """(4, 4), as of NIfTI-1."""
    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        usable = np.isfinite(self.affine).all() and self.voxel_mm3 > 0
        if not usable or np.isnan(nib.orientations.io_orientation(self.affine)).any():
            raise InputError(f"the affine is singular: {self.affine[:3].round(4).tolist()}; export it again")

    @property
    def slices_shape(self) -> tuple[int, int, int]:
        """Number, height and width of the axial slices."""
        shown = np.empty(3, int)
        shown[self._to_shown[:, 0].astype(int)] = self.shape
        return int(shown[2]), int(shown[0]), int(shown[1])

    @property
    def pixel_mm(self) -> tuple[float, float]:
        """Height and width of an axial slice's pixel."""
        sides = np.empty(3)
        sides[self._to_shown[:, 0].astype(int)] = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(sides[0]), float(sides[1])

    @property
    def voxel_mm3(self) -> float:
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    def slices(self, volume_IJK: NDArray[np.generic]) -> NDArray[np.generic]:
        """The volume as axial slices (N, H, W), from inferior to superior."""
        shown: NDArray[np.generic] = nib.orientations.apply_orientation(volume_IJK, self._to_shown)
        return np.ascontiguousarray(np.moveaxis(shown, 2, 0))

    def volume(self, slices_NHW: NDArray[np.generic]) -> NDArray[np.generic]:
        """Axial slices back on the volume's own grid: the inverse of ``slices``."""
        back = nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt(SHOWN), nib.orientations.io_orientation(self.affine)
        )
        volume: NDArray[np.generic] = nib.orientations.apply_orientation(np.moveaxis(slices_NHW, 0, 2), back)
        return np.ascontiguousarray(volume)

    def notes(self) -> tuple[str, ...]:
        """What a reader of the result should know of the grid."""
        height, width = self.pixel_mm
        if max(height, width) < OBLONG * min(height, width):
            return ()
        return (
            f"pixels of its axial slices are {height:.2f} × {width:.2f} mm; the model was trained on square ones",
        )

    @property
    def _to_shown(self) -> NDArray[np.float64]:
        ornt: NDArray[np.float64] = nib.orientations.ornt_transform(
            nib.orientations.io_orientation(self.affine), nib.orientations.axcodes2ornt(SHOWN)
        )
        return ornt
