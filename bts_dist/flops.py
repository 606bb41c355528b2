"""Floating-point operations: how many a sample needs, and how many the devices can do in a second.

Their ratio is the model FLOPs utilisation, MFU (Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways",
2022, appendix B): the work that the model asks for, over the time that training took and the devices' peak.  Work
that the model does not ask for, such as the extra forward pass of micro-batches, takes time and counts for nothing.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bts_dist.config import Config, ModelConfig
from bts_dist.runtime import Runtime, all_reduce
from bts_dist.unet import UNet

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

_MEASURED_S = 0.1
"""Seconds that each kernel is repeated for."""


@dataclass(frozen=True)
class Yardstick:
    """What a training's speed is measured by."""

    sample_flops: int
    """Operations of one sample's forward and backward pass."""
    peak: float
    """Operations a second of all ranks' devices together, as measured at the start."""

    def figures(self, samples_per_s: float) -> dict[str, float]:
        """``flops_per_s`` of all ranks, their ``peak_flops_per_s``, and ``mfu``, the ratio of the two."""
        speed = samples_per_s * self.sample_flops
        return {"flops_per_s": speed, "peak_flops_per_s": self.peak, "mfu": speed / self.peak}

    def note(self, config: Config, runtime: Runtime) -> str:
        threads = f" × {torch.get_num_threads()} thread(s)" if runtime.device.type == "cpu" else ""
        return (
            f"{format_flops(self.sample_flops)} to train on a slice; measured peak {format_flops(self.peak)}/s in "
            f"{config.train.precision} on {runtime.world_size} worker(s){threads}"
        )


def yardstick(config: Config, runtime: Runtime, size: tuple[int, int]) -> Yardstick:
    """Count a sample of ``size`` (H, W) and measure the devices; every rank calls it and gets the same."""
    # Ranks that share a machine must measure at the same time, as they train: none begins before all are here.
    all_reduce(torch.zeros(1, device=runtime.device)).tolist()
    peak = measure_peak(runtime.device, DTYPES[config.train.precision], torch.get_num_threads())
    total = all_reduce(torch.tensor(peak, dtype=torch.float64, device=runtime.device))
    return Yardstick(count_flops(config.model, size), float(total))


@cache
def count_flops(config: ModelConfig, size: tuple[int, int]) -> int:
    """Operations of one sample of ``size`` (H, W), forwards and backwards, a multiplication and an addition being two.

    Convolutions alone are counted, as is usual, plain and transposed: norms, activations and the loss take a few
    operations for each pixel and channel, where a convolution takes 18 for each channel that goes in.
    """
    # Tensors without data; two samples, since a batch norm refuses a single value.
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        outputs = UNet(config)(torch.empty(2, 3, *size))
        torch.autograd.backward([logits.sum() for logits in outputs])
    return int(counter.get_total_flops()) // 2


@cache
def measure_peak(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """Operations a second of the best kernel at hand: a large matrix product or a 3×3 convolution in ``dtype``.

    It stands for what this process can get out of its device with the libraries it trains with, not for what the
    maker promises; ``threads`` are those that torch uses on a CPU, and tell one measurement from another.  The best of
    many repeats counts, as others may use the machine.  Both kernels are tried because either may be the faster one:
    on CUDA, fp32 convolutions may use TF32 where matrix products do not.  The tests measure CPUs only.
    """
    return max(_speed(kernel, flops, device) for kernel, flops in _kernels(device, dtype))


def _kernels(device: torch.device, dtype: torch.dtype) -> list[tuple[Callable[[], Tensor], int]]:
    """Kernels of some milliseconds, and the operations each takes."""
    # A generator of its own: training's must not move.  Not constants: a GPU clocks higher on them.
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(dtype)

    side, (batch, channels, pixels) = (8192, (32, 256, 64)) if device.type == "cuda" else (512, (1, 64, 64))
    left, right = draw(side, side), draw(side, side)
    image, weight = (
        draw(*shape).contiguous(memory_format=torch.channels_last)
        for shape in ((batch, channels, pixels, pixels), (channels, channels, 3, 3))
    )
    return [
        (lambda: left @ right, 2 * side**3),
        (lambda: F.conv2d(image, weight, padding=1), 2 * batch * 9 * (channels * pixels) ** 2),
    ]


@torch.inference_mode()
def _speed(kernel: Callable[[], Tensor], flops: int, device: torch.device) -> float:
    kernel()  # the first call also chooses and compiles
    best, end = math.inf, time.perf_counter() + _MEASURED_S
    while time.perf_counter() < end:
        _wait(device)
        began = time.perf_counter()
        kernel()
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return flops / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def format_flops(flops: float) -> str:
    """With the prefix that suits it, and three digits: ``72.3 GFLOP``."""
    power = min(int(math.log10(max(flops, 1.0))) // 3, 5)
    value = flops / 1000**power
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {' kMGTP'[power].strip()}FLOP"
