"""A model from a patient's grey levels to probabilities and mask, with all that scoring does in between."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from bts_dist.volume_input import head_figures, resize_box


class VolumeModel(nn.Module):
    """Normalisation, resizing, network, mirror average, sigmoid and threshold in one module.

    Input: all slices of one patient, uint8 (N, H, W, 3): pre-contrast, FLAIR, post-contrast.
    Output: probability of tumour, float32 (N, H, W), and mask, uint8 (N, H, W) of {0, 1}.
    """

    def __init__(self, network: nn.Module, image_size: int | None, threshold: float, *, mirror: bool) -> None:
        super().__init__()
        self.network = network
        self.image_size = image_size
        self.threshold = threshold
        self.mirror = mirror

    def forward(self, volume_NHWC: Tensor) -> tuple[Tensor, Tensor]:
        return self.predict(volume_NHWC, *head_figures(volume_NHWC))

    def predict(self, part_NHWC: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """As ``forward``, for some slices of a volume whose normalisation figures are given, float32 (3,) each."""
        image = part_NHWC.permute(0, 3, 1, 2).float()
        if self.image_size is not None:
            image = resize_box(image, self.image_size)
        image = (image - mean[:, None, None]) / std[:, None, None]
        size = (part_NHWC.shape[1], part_NHWC.shape[2])
        probability = self._run(image, size)
        if self.mirror:
            probability = (probability + self._run(image.flip(-1), size).flip(-1)) / 2
        return probability, (probability > self.threshold).to(torch.uint8)

    def _run(self, image_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
        logits: Tensor = self.network(image_BCHW)
        if self.image_size is not None:
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return logits.sigmoid()[:, 0]
