"""What machines cost: a YAML file that users edit (``configs/prices.yaml``)."""

from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from shards.config import Section
from shards.errors import InputError


class Instance(Section):
    name: str
    gpus: int = Field(ge=1)
    gpu: str
    """The GPU's name, as ``nvidia-smi`` has it."""
    bf16_tflops: float = Field(gt=0)
    """Peak of one GPU in half precision, 10^12 operations a second."""
    on_demand: float = Field(ge=0)
    """Price of an hour of the whole instance."""
    spot: float = Field(ge=0)


class Prices(Section):
    currency: str
    region: str
    date: str
    """When the prices were looked up."""
    instances: list[Instance] = Field(min_length=1)


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
    except yaml.YAMLError as error:
        raise InputError(f"{path} is no YAML: {error}; mend it as configs/prices.yaml is") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        raise InputError(f"{path}: {where}: {first['msg']}; mend it as configs/prices.yaml is") from error
