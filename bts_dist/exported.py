"""An exported model in Python, from its safetensors and JSON alone; nothing is unpickled.

from bts_dist.exported import load_exported
model = load_exported("exported/lgg")
mask = model(volume)
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from bts_dist.checkpoint import load_weights
from bts_dist.components import Keep, keep_components
from bts_dist.config import ModelConfig
from bts_dist.ensemble import ensemble
from bts_dist.unet import make_unet
from bts_dist.volume_input import head_figures
from bts_dist.volume_model import VolumeModel
from shards.config import Section
from shards.encode import Pixels
from shards.errors import InputError

FORMAT: Literal["bts-export/1"] = "bts-export/1"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
RECORD = "export.json"

_REMEDY = "copy it again, or export the model again"


class ExportedConfig(Section):
    """All that is needed beside the weights to use a model."""

    format: Literal["bts-export/1"] = FORMAT
    sequences: tuple[str, ...]
    """What the three channels of a slice are."""
    model: ModelConfig
    image_size: int | None
    """Side that slices are scaled to for the network; null leaves them as they are."""
    members: int = Field(default=1, ge=1)
    """Networks whose logits are averaged."""
    mirror: bool
    """Whether the prediction of the left-right flipped slice is averaged in."""
    threshold: float
    """A pixel is tumour where its probability is above this."""
    components: Keep = "all"
    """Which connected components of a volume's mask are kept: a number is the fewest voxels.  Only calling an
    ``ExportedModel`` does it; the graphs' masks end with the threshold."""


class ExportedModel:
    """A trained model that takes grey levels."""

    def __init__(self, config: ExportedConfig, model: VolumeModel, device: torch.device) -> None:
        self.config = config
        self._model, self._device = model, device

    def __call__(self, volume_NHWC: Pixels) -> Pixels:
        """The tumour mask of a whole volume as scoring sees it, uint8 (N, H, W) of {0, 1}; arguments as ``predict``."""
        mask = self.predict(volume_NHWC)[1]
        return keep_components(mask > 0, self.config.components).astype(np.uint8)

    def predict(self, volume_NHWC: Pixels, batch: int = 32) -> tuple[NDArray[np.float32], Pixels]:
        """Probabilities, float32 (N, H, W), and where they are above the threshold, uint8 (N, H, W) of {0, 1}.

        Args:
            volume_NHWC: all slices of one patient, uint8 (N, H, W, 3): pre-contrast, FLAIR, post-contrast, with FLAIR
                in the place of one that is missing.  Grey levels are normalised over the whole volume, so a
                part of it gives other results.
            batch: slices in one pass of the network.

        Raises:
            InputError: it is no such array, or its sides do not fit the network.
        """
        check_volume(volume_NHWC, self.config)
        volume = torch.from_numpy(np.ascontiguousarray(volume_NHWC)).to(self._device)
        with torch.inference_mode():
            figures = head_figures(volume)
            parts = [self._model.predict(part, *figures) for part in torch.split(volume, batch)]
        probability, mask = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
        return probability, mask


def load_exported(folder: str | Path, device: str = "cpu") -> ExportedModel:
    """Load what ``bts export`` wrote to ``folder``.

    Raises:
        InputError: a file is missing, is not as it was written, or does not fit the others.
    """
    folder = Path(folder)
    listed = _read_json(folder / RECORD).get("files", {})
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} is missing; {_REMEDY}")
        if sha256_of(folder / name) != listed.get(name, {}).get("sha256"):
            raise InputError(f"{folder / name} is not as {RECORD} says: its sha256 differs; {_REMEDY}")
    return open_exported(folder, torch.device(device))


def open_exported(folder: Path, device: torch.device) -> ExportedModel:
    """As ``load_exported``, without looking whether the files are as they were written."""
    try:
        config = ExportedConfig.model_validate(_read_json(folder / CONFIG))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{folder / CONFIG} is not of {FORMAT}: {where}: {first['msg']}; {_REMEDY}"
        ) from error
    network = ensemble([make_unet(config.model, device) for _ in range(config.members)])
    load_weights(network, folder / WEIGHTS)
    model = VolumeModel(network, config.image_size, config.threshold, mirror=config.mirror)
    return ExportedModel(config, model.eval(), device)


def check_volume(volume_NHWC: Pixels, config: ExportedConfig) -> None:
    """Raise ``InputError`` unless this is a volume that the model takes."""
    shape = np.shape(volume_NHWC)
    if not (isinstance(volume_NHWC, np.ndarray) and volume_NHWC.dtype == np.uint8):
        found = getattr(volume_NHWC, "dtype", type(volume_NHWC).__name__)
        raise InputError(f"a volume is a uint8 array, found {found}; give the grey levels as they are stored")
    if len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise InputError(f"a volume has the shape (slices, height, width, 3), found {shape}")
    step = 2 ** (config.model.depth - 1)
    if config.image_size is None and (shape[1] % step or shape[2] % step):
        raise InputError(
            f"slices of {shape[1]} × {shape[2]} pixels do not divide by {step}, which this model needs; pad them"
        )


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; name a folder that `bts export` wrote") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); {_REMEDY}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}, not a mapping; {_REMEDY}")
    return found
