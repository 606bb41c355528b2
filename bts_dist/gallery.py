"""Every slice of a scored patient, small enough to lie in a page: the picture, both masks, the counts."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.picture import FLAIR, Mask, Pixels, Rgb

# Green is the mixture of the outlines' yellow and blue, as a hit is of truth and prediction; a miss is in the truth
# alone and a false alarm in the prediction alone, so each has the hue of its outline.  In pairs they stay apart
# for every kind of colour vision.
TRUE_POSITIVE: Rgb = (120, 228, 175)
FALSE_POSITIVE: Rgb = (40, 110, 235)
FALSE_NEGATIVE: Rgb = (255, 190, 0)

PAGE_BYTES = 48 * 2**20
"""Slices that a page carries.  Browsers open more, but telephones are slow with it."""

_QUALITY = 85  # Of WebP: about 5 KB a slice, and no artefact that could be taken for tissue.

PatientSlices = Mapping[str, Any]
"""One patient, as written by ``patient_slices`` and as it lies in ``gallery/<patient>.json``."""


def patient_slices(
    patient: str,
    numbers: Sequence[int],
    images: Iterable[Pixels],
    truth_NHW: Mask,
    prediction_NHW: Mask,
    counts: NDArray[np.int64],
) -> dict[str, Any]:
    """A patient's slices as plain Python values.

    Args:
        patient: the patient's name.
        numbers: the N slices' numbers.
        images: N slices, uint8 (H, W, 3), of which FLAIR is shown.
        truth_NHW: the true masks.
        prediction_NHW: the predicted masks.
        counts: int64 (N, 3), true positives, false positives and false negatives of each slice.

    Returns:
        ``patient``, ``height``, ``width`` and ``slices``: each with its number ``slice``, FLAIR as a WebP file in
        base64 ``image``, the masks ``truth`` and ``prediction`` as run lengths, and its counts ``tp``, ``fp`` and
        ``fn``.

    Raises:
        ValueError: the arguments do not all have N slices.
    """
    _, height, width = truth_NHW.shape
    slices = [
        {
            "slice": number,
            "image": base64.b64encode(webp).decode(),
            "truth": run_lengths(truth_HW),
            "prediction": run_lengths(prediction_HW),
            **dict(zip(("tp", "fp", "fn"), own.tolist(), strict=True)),
        }
        for number, webp, truth_HW, prediction_HW, own in zip(
            numbers, _pictures(images), truth_NHW, prediction_NHW, counts, strict=True
        )
    ]
    return {"patient": patient, "height": height, "width": width, "slices": slices}


def run_lengths(mask_HW: Mask) -> list[int]:
    """Lengths of the runs outside and inside a mask in turn, row by row, the first one outside and maybe 0.

    The last run outside is left out, so that an empty mask is an empty list.
    """
    flat = np.concatenate(([False], mask_HW.ravel(), [False]))
    # A change between two pixels is an edge of a run; the list ends where the mask last ends.
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    lengths: list[int] = np.diff(edges, prepend=0).tolist()
    return lengths


def _pictures(images: Iterable[Pixels]) -> list[bytes]:
    """FLAIR in grey as WebP files; one window for the volume, so that brightness is steady from slice to slice."""
    flair_NHW = np.stack([image_HWC[..., FLAIR] for image_HWC in images])
    low, high = np.percentile(flair_NHW, (1.0, 99.5))
    return [_webp((flair_HW - low) / max(high - low, 1e-6)) for flair_HW in flair_NHW]


def _webp(grey_HW: NDArray[np.float64]) -> bytes:
    """A WebP file of grey in 0..1, cut off beyond."""
    pixels_HW = np.rint(np.clip(grey_HW, 0.0, 1.0) * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels_HW).save(file, format="WEBP", quality=_QUALITY, method=4)
    return file.getvalue()


def fitting(patients: Sequence[PatientSlices], budget: int) -> Sequence[PatientSlices]:
    """The first patients whose pictures come to no more than ``budget`` bytes."""
    size = 0
    for number, patient in enumerate(patients):
        size += sum(len(each["image"]) for each in patient["slices"])
        if size > budget:
            return patients[:number]
    return patients
