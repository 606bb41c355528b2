"""What packing and reading make of a volume before the network sees it, as tensor operations that can be exported.

``shards.verify`` and ``shards.reader`` do the same with numpy and Pillow.  The tests hold the two against each other.
"""

import torch
from torch import Tensor

_LEVELS = 256
_FLAIR = 1
_WEIGHT_ONE = 1 << 22
"""Weight 1 in Pillow's fixed-point arithmetic for 8-bit pixels."""


def head_figures(volume_NHWC: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each sequence over the head: those that ``shards.verify.head_figures`` gives.

    Both are float32 (3,), rounded to four decimals as in a sample's JSON.  ``volume_NHWC``: all slices of one
    patient, uint8 (N, H, W, 3).
    """
    flair = volume_NHWC[..., _FLAIR].reshape(-1).long()
    threshold = _otsu(_histogram(flair, torch.ones_like(flair), _LEVELS)) / 2
    head = (flair.double() > threshold).long()
    # One histogram for all sequences, that of the second one behind that of the first one.
    places = volume_NHWC.reshape(-1, 3).long() + _LEVELS * torch.arange(3, device=flair.device)
    weights = head[:, None].expand(-1, 3)
    counts = _histogram(places.reshape(-1), weights.reshape(-1), 3 * _LEVELS).reshape(3, _LEVELS).double()
    levels = torch.arange(_LEVELS, dtype=torch.float64, device=flair.device)
    num = counts.sum(dim=1, keepdim=True).clamp(min=1)
    mean = (counts * levels).sum(dim=1, keepdim=True) / num
    variance = (counts * (levels - mean) ** 2).sum(dim=1, keepdim=True) / num
    std = torch.where(variance > 0, variance.sqrt(), 1.0)
    return _rounded(mean[:, 0]), _rounded(std[:, 0])


def resize_box(image_BCHW: Tensor, size: int) -> Tensor:
    """Scale slices to ``size`` × ``size`` by averaging, as Pillow's ``BOX`` filter does with uint8 pixels.

    Takes and gives float32 (B, C, H, W) of whole numbers from 0 to 255.  The result is Pillow's to the bit for slices
    that are no taller than wide.  Taller ones Pillow may scale by rows first, depending on its version and their
    sides; then a pixel may differ by one grey level.
    """
    for _ in range(2):  # Pillow rounds to whole grey levels after the columns and again after the rows
        weights = _box_weights(image_BCHW.shape[-1], size, image_BCHW.device)
        # Whole numbers below 2**53 throughout, so float64 adds them up without rounding.
        sums = image_BCHW.double() @ weights
        image_BCHW = ((sums + _WEIGHT_ONE // 2) / _WEIGHT_ONE).floor().clamp(0, _LEVELS - 1).float().mT
    return image_BCHW


def _box_weights(num_in: int, num_out: int, device: torch.device) -> Tensor:
    """Weight of each of ``num_in`` pixels in each of ``num_out``; whole numbers as float64 (num_in, num_out).

    A pixel counts where its middle lies under the box, which is one output pixel wide and no narrower than one
    input pixel.
    """
    pixels = torch.arange(num_in, dtype=torch.float64, device=device)[:, None]
    scale = (pixels[-1:] + 1) / num_out
    width = scale.clamp(min=1.0)
    centres = (torch.arange(num_out, dtype=torch.float64, device=device) + 0.5) * scale
    # Pillow's order of operations: where a middle lies on the box's very edge, rounding decides, twice.
    offset = (pixels - centres + 0.5) * (1.0 / width)
    first, stop = (centres - width * 0.5 + 0.5).floor(), (centres + width * 0.5 + 0.5).floor()
    under = ((offset > -0.5) & (offset <= 0.5) & (pixels >= first) & (pixels < stop)).double()
    return (under / under.sum(dim=0, keepdim=True) * _WEIGHT_ONE + 0.5).floor()


def _otsu(counts: Tensor) -> Tensor:
    """The threshold of a 256-bin histogram, as ``shards.verify`` has it; float64 (1,)."""
    levels = torch.arange(_LEVELS, device=counts.device)
    below, sum_below = counts.cumsum(0), (counts * levels).cumsum(0)
    above, sum_above = below[-1:] - below, sum_below[-1:] - sum_below
    mean_below = sum_below.double() / below.clamp(min=1).double()
    mean_above = sum_above.double() / above.clamp(min=1).double()
    between = below.double() * above.double() * (mean_above - mean_below) ** 2
    parted = (below > 0) & (above > 0)
    best = torch.where(parted, between, -1.0).argmax(dim=0, keepdim=True)
    threshold = (mean_below.gather(0, best) + mean_above.gather(0, best)) / 2
    return torch.where(parted.gather(0, best), threshold, 0.0)


def _histogram(places: Tensor, weights: Tensor, size: int) -> Tensor:
    """Sum of the weights at each place, int64 (size,)."""
    empty = torch.zeros(size, dtype=torch.int64, device=places.device)
    return empty.scatter_add(0, places, weights)


def _rounded(values: Tensor) -> Tensor:
    return ((values * 1e4).round() / 1e4).float()
