"""Random changes of training samples, applied to whole batches on the device.

Each sample's random numbers come from a hash of (seed, epoch, sample id) alone, so a sample is changed in the
same way whatever the rank, the batch or the order it comes in.  One resampling does flip, rotation, zoom, shift
and elastic deformation together (the last after Simard, Steinkraus and Platt, ICDAR 2003, on a coarse grid).
"""

import math

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from bts_dist.config import AugmentConfig
from shards.order import hash64

GRID = 5
"""Side of the coarse displacement grid of the elastic deformation."""

_NUM_SCALARS = 20
_STREAM = 0xA06


def augment(
    image_BCHW: Tensor,
    truth_B1HW: Tensor,
    ids: NDArray[np.int64],
    *,
    seed: int,
    epoch: int,
    config: AugmentConfig,
) -> tuple[Tensor, Tensor]:
    """Change normalised images (B, 3, H, W) and truths (B, 1, H, W), both float32 on one device."""
    device = image_BCHW.device
    draws = uniforms(ids, seed, epoch, _NUM_SCALARS + 2 * GRID * GRID)
    scalars = torch.from_numpy(draws[:, :_NUM_SCALARS]).to(device)
    field = torch.from_numpy(_normals(draws[:, _NUM_SCALARS:])).to(device)
    grid = _sampling_grid(scalars, field.view(-1, 2, GRID, GRID), config, image_BCHW.shape[-2:])
    if grid is not None:
        image_BCHW = F.grid_sample(image_BCHW, grid, padding_mode="border", align_corners=False)
        truth_B1HW = F.grid_sample(truth_B1HW, grid, padding_mode="zeros", align_corners=False)
        truth_B1HW = (truth_B1HW > 0.5).float()
    return _change_intensity(image_BCHW, scalars, ids, seed, epoch, config), truth_B1HW


def uniforms(ids: NDArray[np.int64], seed: int, epoch: int, num: int) -> NDArray[np.float32]:
    """``num`` uniform numbers in (0, 1) for each sample; float32 (B, num)."""
    counters = np.arange(num, dtype=np.uint64)
    bits = hash64(_STREAM, seed, epoch, ids.astype(np.uint64)[:, None], counters)
    # 23 bits and a half: with one more, the largest would round to 1 in float32.
    return (((bits >> np.uint64(41)).astype(np.float64) + 0.5) / 2.0**23).astype(np.float32)


def _normals(uniform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Box–Muller on the two halves of each row."""
    first, second = np.split(uniform.astype(np.float64), 2, axis=1)
    radius = np.sqrt(-2 * np.log(first))
    angle = 2 * math.pi * second
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1).astype(np.float32)


def _sampling_grid(
    scalars: Tensor, field_B2GG: Tensor, config: AugmentConfig, size: torch.Size
) -> Tensor | None:
    """Where each output pixel is read from, in grid_sample's [-1, 1] coordinates; (B, H, W, 2)."""
    if config.flip == config.flip_vertical == config.affine == config.elastic == 0:
        return None
    u = scalars.unbind(dim=1)
    flip_x = 1 - 2 * (u[0] < config.flip).float()
    flip_y = 1 - 2 * (u[1] < config.flip_vertical).float()
    on = (u[2] < config.affine).float()
    angle = on * (2 * u[3] - 1) * math.radians(config.rotate_deg)
    zoom = 1 / (1 + on * (2 * u[4] - 1) * config.scale)
    shift_x, shift_y = (on * (2 * v - 1) * 2 * config.translate for v in (u[5], u[6]))
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    rows = [cos * flip_x, -sin * flip_y, shift_x, sin * flip_x, cos * flip_y, shift_y]
    matrix = torch.stack(rows, dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, [len(scalars), 1, *size], align_corners=False)
    if config.elastic > 0:
        strength = (u[7] < config.elastic).float() * 2 * config.elastic_shift
        bend = F.interpolate(field_B2GG, size=size, mode="bicubic", align_corners=True)
        grid = grid + strength.view(-1, 1, 1, 1) * bend.permute(0, 2, 3, 1)
    return grid


def _change_intensity(
    image_BCHW: Tensor, scalars: Tensor, ids: NDArray[np.int64], seed: int, epoch: int, config: AugmentConfig
) -> Tensor:
    u = [v.view(-1, 1, 1, 1) for v in scalars.unbind(dim=1)]
    if config.intensity > 0:
        on = (u[8] < config.intensity).float()
        # Each sequence has its own gain and offset: scanners and protocols differ by sequence.
        gain = 1 + on * (2 * torch.cat(u[9:12], dim=1) - 1) * config.contrast
        offset = on * (2 * torch.cat(u[12:15], dim=1) - 1) * config.brightness * math.sqrt(3)
        low = image_BCHW.amin(dim=(2, 3), keepdim=True)
        span = (image_BCHW.amax(dim=(2, 3), keepdim=True) - low).clamp_min(1e-3)
        power = torch.exp(on * (2 * u[15] - 1) * config.gamma)
        curved = ((image_BCHW - low) / span).clamp(0, 1) ** power * span + low
        image_BCHW = curved * gain + offset
    if config.drop_sequence > 0:
        gone = (u[16] < config.drop_sequence).float() * (u[17] < 0.5).float()
        gone_post = (u[16] < config.drop_sequence).float() - gone
        flair = image_BCHW[:, 1:2]
        image_BCHW = torch.cat(
            [
                torch.lerp(image_BCHW[:, 0:1], flair, gone),
                flair,
                torch.lerp(image_BCHW[:, 2:3], flair, gone_post),
            ],
            dim=1,
        )
    noisy = np.flatnonzero((scalars[:, 18] < config.noise).cpu().numpy())
    if len(noisy) and config.noise_std > 0:
        image_BCHW = image_BCHW.clone()
        for row in noisy:
            noise = _noise(image_BCHW[row].shape, int(ids[row]), seed, epoch).to(image_BCHW.device)
            image_BCHW[row] += noise * (config.noise_std * scalars[row, 19])
    return image_BCHW


def _noise(shape: torch.Size, sample: int, seed: int, epoch: int) -> Tensor:
    # Drawn on the CPU: a device's own generator would give other numbers there.
    key = int(hash64(_STREAM + 1, seed, epoch, sample)) & (2**63 - 1)
    generator = torch.Generator().manual_seed(key)
    return torch.randn(shape, generator=generator)
