"""A slice with its masks as layers of their own, which a viewer can show and hide."""

from dataclasses import dataclass

from shards.picture import Mask, Pixels


@dataclass(frozen=True, eq=False)  # == on the arrays would be elementwise
class SliceOverlay:
    """One slice of a patient, with truth and prediction."""

    patient: str
    slice_number: int
    image_HWC: Pixels
    """FLAIR in grey, uint8 H×W×3."""
    truth_HW: Mask
    prediction_HW: Mask
