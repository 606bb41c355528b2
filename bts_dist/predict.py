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

    straight = _logits(model, image_BCHW, size, precision).sigmoid()
    if not mirror:
        return straight
    return (straight + _logits(model, image_BCHW.flip(-1), size, precision).flip(-1).sigmoid()) / 2


def _logits(model: nn.Module, image_BCHW: Tensor, size: tuple[int, int], precision: str) -> Tensor:
    """Logits at native size, float32 (B, *size)."""
    with torch.inference_mode(), autocast(image_BCHW.device, precision):
        logits: Tensor = model(image_BCHW)
    logits = logits.float()
    if logits.shape[-2:] != size:
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    return logits[:, 0]


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
    parts = [
        probabilities(model, image, size, precision=precision, mirror=mirror).cpu().numpy()
        for image in _images(batches, device)
    ]
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
    batches = _batches(source, patient, batch)
    probability = predict_slices(
        model, batches, source.reader.native_size, device=device, precision=precision, mirror=mirror
    )
    return probability, truth_of(source, patient)


def patient_logits(
    model: nn.Module,
    source: SampleSource,
    patient: str,
    *,
    device: torch.device,
    batch: int,
    precision: str,
    mirror: bool,
) -> Tensor:
    """Logits of one patient's slices, float32 (1, slices, H, W) at native size, on the CPU.

    With ``mirror`` there are two of each, (2, slices, H, W): of the slice, and of the flipped slice, flipped back.
    """
    size = source.reader.native_size
    parts = []
    for image in _images(_batches(source, patient, batch), device):
        part = [_logits(model, image, size, precision)]
        if mirror:
            part.append(_logits(model, image.flip(-1), size, precision).flip(-1))
        parts.append(torch.stack(part).cpu())
    return torch.cat(parts, dim=1)


def truth_of(source: SampleSource, patient: str) -> Pixels:
    """The truth (slices, H, W) of one patient, in slice order at native size."""
    return np.stack([source.native_mask(int(i)) for i in source.reader.index.samples_of(patient)])


def _batches(source: SampleSource, patient: str, size: int) -> Iterator[Batch]:
    return (source.batch(chunk) for chunk in _chunks(source.reader.index.samples_of(patient), size))


def _images(batches: Iterable[Batch], device: torch.device) -> Iterator[Tensor]:
    for batch in batches:
        image, _ = batch.to(device)
        yield image.contiguous(memory_format=torch.channels_last)


def _chunks(ids: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
