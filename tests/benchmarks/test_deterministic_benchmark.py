"""The benchmark of the deterministic step: all kinds of steps take the same steps, and the arithmetic of its page."""

from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))


def test_all_kinds_take_the_same_steps(tmp_path: Path) -> None:
    import deterministic as benchmark

    from bts_dist.compose import load_config, with_overrides
    from bts_dist.runtime import local_runtime

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    settings = {
        "data.shards": benchmark.make_phantom(tmp_path, 32),
        "data.image_size": 32,
        "model.norm": "group",
        "model.features": 2,
        "model.depth": 2,
        "data.cache": "none",
    }
    config = with_overrides(load_config([benchmark.ROOT / "configs" / "lgg-cpu.yaml"], []), settings)
    try:
        measured = benchmark.measure(config, local_runtime(), 2)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)
    assert measured.seconds.keys() == measured.norms.keys() == benchmark.STEPS.keys()
    assert all(len(seconds) == 2 for seconds in measured.seconds.values())
    assert len({measured.norms[name] for name in benchmark.EXACT}) == 1
    usual, exact = measured.norms["usual"], measured.norms["exact"]
    assert usual != exact
    assert usual == pytest.approx(exact, rel=0.05)  # the same but for bf16's rounding


def test_ratios_are_to_the_usual_step_of_the_same_turn() -> None:
    import deterministic as benchmark

    from bts_dist.compose import load_config

    def measured(norm: float) -> object:
        seconds = {name: [1.0, 2.0, 4.0] for name in benchmark.STEPS} | {"exact": [3.0, 4.0, 4.0]}
        exchanges = {"exchange": [0.5], "exchange, before": [1.5]}
        return benchmark.Measured(seconds | exchanges, dict.fromkeys(benchmark.STEPS, norm))

    config = load_config([benchmark.ROOT / "configs" / "lgg-cpu.yaml"], [])
    settings = benchmark.SETTINGS
    page = benchmark.report(dict(zip(settings, map(measured, (0.1, 0.1, 0.2)), strict=True)), config, 3)
    assert "| exact | 2 (1–3) | 2 (1–3) | 2 (1–3) | 1.1, 1.1, 1.4 |" in page
    assert "| usual | 2 (1–4) | 2 (1–4) | 2 (1–4) |" in page
    assert "| exchange, before | 16 × 7.8 | 1.5 (1.5–1.5) |" in page
    assert "all exact kinds are equal bit for bit" in page
    other = benchmark.report(dict(zip(settings, map(measured, (0.1, 0.3, 0.2)), strict=True)), config, 3)
    assert "DIFFER" in other
