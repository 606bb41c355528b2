"""Tumour probabilities for the slices of a patient, always at native size."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn

from bts_dist.data import Batch, SampleSource
from shards.encode import Pixels

_LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Mixed precision as ``train.precision`` says."""
    return torch.autocast(device.type, _LOW.get(precision), enabled=precision in _LOW)


def probabilities(
    model: nn.Module, image_BCHW: Tensor, size: tuple[int, int], *, precision: str, mirror: bool
) -> Tensor:
    """Probability of tumour, float32 (B, *size), of normalised images (B, 3, H, W).

    Logits are resampled bilinearly to ``size``.  With ``mirror`` the prediction of the left-right flipped slice
    is averaged in.
    """

    def run(x_BCHW: Tensor) -> Tensor:
        with torch.inference_mode(), autocast(x_BCHW.device, precision):
            logits: Tensor = model(x_BCHW)
        logits = logits.float()
        if logits.shape[-2:] != size:
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return logits.sigmoid()[:, 0]

    out = run(image_BCHW)
    return (out + run(image_BCHW.flip(-1)).flip(-1)) / 2 if mirror else out


def predict_slices(
    model: nn.Module,
    batches: Iterable[Batch],
    size: tuple[int, int],
    *,
    device: torch.device,
    precision: str,
    mirror: bool,
) -> NDArray[np.float32]:
    """Probabilities (slices, *size) of the slices in ``batches``, in their order."""
    parts: list[NDArray[np.float32]] = []
    for batch in batches:
        image, _ = batch.to(device)
        image = image.contiguous(memory_format=torch.channels_last)
        parts.append(probabilities(model, image, size, precision=precision, mirror=mirror).cpu().numpy())
    return np.concatenate(parts)


def predict_patient(
    model: nn.Module,
    source: SampleSource,
    patient: str,
    *,
    device: torch.device,
    batch: int,
    precision: str,
    mirror: bool,
) -> tuple[NDArray[np.float32], Pixels]:
    """Probabilities (slices, H, W) and the truth (slices, H, W) of one patient, in slice order at native size."""
    ids = source.reader.index.samples_of(patient)
    batches = (source.batch(chunk) for chunk in _chunks(ids, batch))
    probability = predict_slices(
        model, batches, source.reader.native_size, device=device, precision=precision, mirror=mirror
    )
    return probability, np.stack([source.native_mask(int(i)) for i in ids])


def _chunks(ids: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
