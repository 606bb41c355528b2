"""Operations of a sample against the formula, and what a training's speed is measured by."""

import pytest
import torch

from bts_dist import flops as module
from bts_dist.config import Config, UNetConfig
from bts_dist.flops import Yardstick, count_flops, format_flops, measure_peak, yardstick
from bts_dist.runtime import LocalRuntime
from bts_dist.unet import make_unet

CPU = torch.device("cpu")


def test_a_small_unet_takes_what_the_formula_says() -> None:
    """Two levels, 4 and 8 channels, 16 × 24 pixels.  A k × k convolution: 2 k² × channels in × out × pixels out."""
    fine, coarse = 16 * 24, 8 * 12
    first = 2 * 9 * 3 * 4 * fine
    others = (
        2 * 9 * 4 * 4 * fine  # first level, second convolution
        + 2 * 9 * 4 * 8 * coarse
        + 2 * 9 * 8 * 8 * coarse
        + 2 * 4 * 8 * 4 * coarse  # transposed 2 × 2, stride 2: each coarse pixel gives four
        + 2 * 9 * 8 * 4 * fine
        + 2 * 9 * 4 * 4 * fine
        + 2 * 1 * 4 * 1 * fine  # head
    )
    # Backwards, each has a gradient for its weights and one for its input, but for the image, which needs none.
    assert count_flops(UNetConfig(features=4, depth=2), (16, 24)) == 2 * first + 3 * others


def test_operations_grow_with_the_pixels_alone() -> None:
    config = UNetConfig(features=4, depth=3, norm="group")
    small = count_flops(config, (16, 16))
    assert count_flops(config, (32, 64)) == 8 * small
    # Norm and dropout count for nothing; a batch norm over a single coarsest pixel is no obstacle.
    other = config.model_copy(update={"norm": "batch", "dropout": 0.5})
    assert count_flops(other, (16, 16)) == small
    assert count_flops(other, (4, 4)) == small // 16


def test_counting_leaves_training_as_it_is() -> None:
    torch.manual_seed(3)
    expected = make_unet(UNetConfig(features=4, depth=2), CPU).state_dict()
    torch.manual_seed(3)
    count_flops.cache_clear()
    measure_peak.cache_clear()
    count_flops(UNetConfig(features=4, depth=2), (8, 8))
    measure_peak(CPU, torch.float32, torch.get_num_threads())
    # Weights are drawn from the generator that both might have moved.
    for name, value in make_unet(UNetConfig(features=4, depth=2), CPU).state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_the_peak_is_that_of_the_faster_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """With kernels that take 1 ms and 10 ms of a clock that nothing else moves."""
    now = [0.0]

    class Clock:
        perf_counter = staticmethod(lambda: now[0])

    def kernel(seconds: float) -> object:
        def run() -> torch.Tensor:
            now[0] += seconds
            return torch.empty(0)

        return run

    monkeypatch.setattr(module, "time", Clock)
    monkeypatch.setattr(module, "_kernels", lambda *_: [(kernel(0.01), 500), (kernel(0.001), 100)])
    assert measure_peak.__wrapped__(CPU, torch.float32, 1) == pytest.approx(100 / 0.001)


def test_kernels_do_the_work_they_are_counted_for() -> None:
    for kernel, flops in module._kernels(CPU, torch.bfloat16):
        with module.FlopCounterMode(display=False) as counter:
            assert kernel().dtype == torch.bfloat16
        assert counter.get_total_flops() == flops


def test_utilisation_is_speed_over_peak(config: Config, runtime: LocalRuntime) -> None:
    figures = Yardstick(sample_flops=2_000, peak=50_000.0).figures(samples_per_s=10)
    assert figures == {"flops_per_s": 20_000, "peak_flops_per_s": 50_000, "mfu": 0.4}
    measured = yardstick(config, runtime, (32, 32))
    assert measured.sample_flops == count_flops(config.model, (32, 32))
    assert measured.peak == measure_peak(CPU, torch.float32, torch.get_num_threads())
    assert "in fp32 on 1 worker(s) × 1 thread(s)" in measured.note(config, runtime)


@pytest.mark.parametrize(
    ("flops", "text"),
    [
        (0, "0.00 FLOP"),
        (999, "999 FLOP"),
        (72.34e9, "72.3 GFLOP"),
        (1.5e12, "1.50 TFLOP"),
        (4e18, "4000 PFLOP"),
    ],
)
def test_operations_are_written_with_a_prefix(flops: float, text: str) -> None:
    assert format_flops(flops) == text
