"""The checkpoint benchmark: every way to save saves all of a state, and the arithmetic of what a save costs."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bts_dist.checkpoint import Progress, TrainState
from bts_dist.optim import Ema, make_optimizer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


class Clock:
    """Stands still but for what is told to take time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def taking(self, *seconds: float) -> Callable[[], None]:
        left = list(seconds)

        def take() -> None:
            self.now += left.pop(0)

        return take


def test_a_save_costs_its_stand_still_and_the_slower_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    import checkpoint as benchmark

    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    steps, finished = clock.taking(1, 2, 3, 4, 2, 9), [False]

    class Done:
        def __init__(self, of: Callable[[], float]) -> None:
            self.result = of
            self.asked = 0

        def done(self) -> bool:
            self.asked += 1
            return self.asked > 2  # two steps begin before it is

    class Watch:
        def __init__(self, _: int) -> None: ...
        def __enter__(self) -> "Watch":
            return self

        def __exit__(self, *_: object) -> None: ...
        def submit(self, of: Callable[[], float]) -> Done:
            return Done(of)

    monkeypatch.setattr(benchmark, "ThreadPoolExecutor", Watch)

    def save() -> Callable[[], object]:
        clock.now += 0.5
        return lambda: finished.append(True)

    figures = benchmark.measure(steps, save)
    assert finished[-1]
    assert figures.still == 0.5
    assert figures.step == 2  # the median of 1, 2, 2 and 9
    assert figures.slowed == 3 + 4 - 2 * 2
    assert figures.complete == 0.5 + 3 + 4 + 2 + 9  # asked for at the end here, noted by a thread in earnest


def test_shares_are_of_the_real_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    import checkpoint as benchmark

    from bts_dist.compose import load_config

    model = torch.nn.Conv2d(3, 40, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3, 4, 4)).sum().backward()
    optimizer.step()
    state = TrainState(model, optimizer, Ema(model, 0.9), Progress())
    config = load_config([BENCHMARKS.parent / "configs" / "lgg-cpu.yaml"], [])
    found = {"ours": [benchmark.Figures(still, 1, 0.3, 0.5) for still in (0.1, 0.2, 0.9)]}
    text = benchmark.section(benchmark.Size("tiny", (), 2618 // 7), config, state, found, "limits")
    assert (
        "A state of 0 MB in 10 tensors" in text
    )  # weight and bias: theirs, averaged, two moments and a count each
    assert "an epoch of 2,618 slices takes 4 s" in text  # 7 steps of half a second
    row = text.splitlines()[-1]
    assert row == "| ours | 5.714% / 14.29% | 22.857% / 57.14% | 91.429% / 228.57% |"


@pytest.mark.e2e
def test_every_way_takes_its_turn(tmp_path: Path) -> None:
    output = tmp_path / "checkpoint.md"
    command = [sys.executable, BENCHMARKS / "checkpoint.py", "--quick", "--repeats", "1", "--output", output]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = output.read_text()
    for way in (
        "ours",
        "ours, before",
        "ours, waited for",
        "`torch.save` and fsync",
        "DCP, process, memory kept",
    ):
        assert page.count(f"\n| {way} | ") == 2


@pytest.mark.parametrize("way", ["ours", "ours, before", "ours, waited for", "`torch.save` and fsync"])
def test_what_is_saved_is_all_of_the_state(way: str, tmp_path: Path) -> None:
    from savers import KEEP, WAYS, state_bytes

    from bts_dist.config import Config

    model = torch.nn.Conv2d(3, 40, 3)
    config = Config()
    optimizer = make_optimizer(config.optim, model)
    model(torch.ones(1, 3, 4, 4)).sum().backward()
    optimizer.step()
    state = TrainState(model, optimizer, Ema(model, 0.9), Progress())
    assert state_bytes(state) == 4 * 4 * (40 * 3 * 9 + 40) + 2 * 4
    with WAYS[way](str(tmp_path / "saved")) as save:
        for step in (1, 2, 3):
            save(state, config, step)()
    size = sum(path.stat().st_size for path in (tmp_path / "saved").rglob("*") if path.is_file())
    assert KEEP * state_bytes(state) < size < KEEP * (state_bytes(state) + 16_000)
