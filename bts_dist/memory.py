"""Memory that ran out: what was being done, and what to lower, first what changes no result."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec

import torch

from bts_dist.config import Config
from bts_dist.runtime import Runtime
from bts_dist.step import num_micro_batches

P = ParamSpec("P")

_SIGNS = ("out of memory", "can't allocate memory", "alloc_failed", "std::bad_alloc")
"""How torch, CUDA, cuBLAS and NCCL say it in a RuntimeError, in lower case."""


class OutOfMemoryError(RuntimeError):
    """The memory of the device or of the machine is too small for these settings.  Trying again does not help."""


@contextmanager
def explained(explain: Callable[P, str], *arguments: P.args, **named: P.kwargs) -> Iterator[None]:
    """Have memory that runs out in here told by what ``explain`` says of the arguments.

    Raises:
        OutOfMemoryError: it ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_shortage(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise OutOfMemoryError(f"{explain(*arguments, **named)} ({reason})") from error


def in_training(config: Config, runtime: Runtime, batch_size: int, sides: tuple[int, int]) -> str:
    """What to say of a step on a global batch of ``batch_size`` slices of these sides, in pixels."""
    part = -(-batch_size // runtime.world_size)
    num = num_micro_batches(batch_size, runtime.world_size, config.train.micro_batch)
    at_once = 1 if config.train.deterministic else -(-part // num)
    harmless = []
    half = max(1, at_once // 2)
    if not config.train.deterministic and num_micro_batches(batch_size, runtime.world_size, half) > num:
        harmless.append(f"train.micro_batch={half}")
    if runtime.device.type == "cuda" and config.data.cache in ("auto", "device"):
        harmless.append("data.cache=memory")
    return (
        f"rank {runtime.rank} ran out of memory on {runtime.device} in a training step: global batch {batch_size}, "
        f"{part} slices on a worker, {at_once} at once, {_settings(config, sides)}. "
        + _advice(harmless, [*_precision(config), *_smaller(config, sides)])
    )


def in_validation(config: Config, runtime: Runtime, patient: str, sides: tuple[int, int]) -> str:
    """What to say of the prediction of a validation patient's slices."""
    return (
        f"rank {runtime.rank} ran out of memory on {runtime.device} validating {patient}: "
        f"{config.score.batch} slices at once, {_settings(config, sides)}. "
        + _advice(_score_batch(config), [*_precision(config), *_smaller(config, sides)])
    )


def in_scoring(
    scoring: Config, model: Config, device: torch.device, patient: str, sides: tuple[int, int]
) -> str:
    """What to say of the prediction of a test patient's slices by a model trained with another config."""
    return (
        f"out of memory on {device} scoring {patient}: {scoring.score.batch} slices at once, "
        f"{_settings(model, sides)}. " + _advice(_score_batch(scoring), [])
    )


def _is_shortage(error: MemoryError | RuntimeError) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return any(sign in text for sign in _SIGNS)


def _settings(config: Config, sides: tuple[int, int]) -> str:
    return (
        f"{sides[0]} × {sides[1]} pixels, model.features {config.model.features}, model.depth {config.model.depth}, "
        f"{config.train.precision}"
    )


def _score_batch(config: Config) -> list[str]:
    return [f"score.batch={config.score.batch // 2}"] if config.score.batch > 1 else []


def _precision(config: Config) -> list[str]:
    return ["train.precision=bf16 (fp16 on a GPU without bf16)"] if config.train.precision == "fp32" else []


def _smaller(config: Config, sides: tuple[int, int]) -> list[str]:
    step: int = 2 ** (config.model.depth - 1)
    side = max(sides) * 3 // 4 // step * step
    smaller = [f"data.image_size={side}"] if side else []
    if config.model.features > 1:
        smaller.append(f"model.features={config.model.features // 2}")
    return smaller


def _advice(harmless: list[str], others: list[str]) -> str:
    """``harmless`` settings change no result but for rounding, the others do; each is worth trying before the next."""
    parts = []
    if harmless:
        parts.append(f"Set {', then '.join(harmless)}, which changes no result")
    if others:
        parts.append(f"{'then' if harmless else 'Set'} {', then '.join(others)}")
    return "; ".join(parts) if parts else "No setting makes it smaller; use a machine with more memory"
