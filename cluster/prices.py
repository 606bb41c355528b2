"""What machines cost: a YAML file that users edit (``configs/prices.yaml``)."""

import re
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator

from shards.config import Section
from shards.errors import InputError

_MAKERS = {"nvidia", "tesla"}
_VARIANT = re.compile(r"\d+gb|hbm\w+|sxm\d*|pcie|nvl")
"""What a driver adds to a GPU's name and people leave out: its memory, and the board that it is on."""


class Instance(Section):
    name: str
    gpus: int = Field(ge=1)
    gpu: str
    """The GPU's name, as ``nvidia-smi`` has it; memory and board may be left out."""
    bf16_tflops: float = Field(gt=0)
    """Peak of one GPU in half precision, 10^12 operations a second."""
    on_demand: float = Field(ge=0)
    """Price of an hour of the whole instance."""
    spot: float = Field(ge=0)

    @field_validator("gpu")
    @classmethod
    def _check_gpu(cls, gpu: str) -> str:
        if not _words(gpu):
            raise ValueError(f"name the GPU as nvidia-smi does, such as NVIDIA L4; found {gpu!r}")
        return gpu

    def has(self, device: str) -> bool:
        """Whether its GPUs are those that a driver calls ``device``.

        All words of ``gpu`` stand in the driver's name, maker and case aside, and what that has beyond them is memory
        or board: ``H100`` is an ``NVIDIA H100 80GB HBM3``; an A100 of 80 GB is no ``A100-SXM4-40GB``, an ``RTX 3080
        Ti`` no ``RTX 3080``, and a part of a GPU (``… MIG 1g.10gb``) not the whole.
        """
        listed, found = _words(self.gpu), _words(device)
        return listed <= found and all(_VARIANT.fullmatch(word) for word in found - listed)


class Prices(Section):
    currency: str
    region: str
    date: str
    """When the prices were looked up."""
    instances: list[Instance] = Field(min_length=1)

    @field_validator("date", mode="before")
    @classmethod
    def _as_text(cls, found: Any) -> Any:
        # Without quotes YAML reads 2026-11-25 as a date of its own.
        return found.isoformat() if isinstance(found, date) else found


def read_prices(path: Path) -> Prices:
    """The file's prices.

    Raises:
        InputError: it is not there, or a price is missing or none.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Prices.model_validate(content)
    except OSError as error:
        raise InputError(
            f"{path}: no prices to read ({(error.strerror or str(error)).lower()}); name a file with --prices"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no YAML: {error}; mend it as configs/prices.yaml is") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        raise InputError(f"{path}: {where}: {first['msg']}; mend it as configs/prices.yaml is") from error


def _words(name: str) -> set[str]:
    return set(re.split(r"[\s-]+", name.lower())) - _MAKERS - {""}
