"""Rates from a run's record, and from real steps."""

import time

import pytest
import torch

from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.rates import _rate, measured_rates, recorded_rates
from shards.reader import PackedData


def row(samples_per_s: float, val_s: float, **more: object) -> dict[str, object]:
    return {
        "samples_per_s": samples_per_s,
        "time/val_s": val_s,
        "flops_per_s": samples_per_s * 1000,
        "peak_flops_per_s": 1e6,
        **more,
    }


def test_the_median_epoch_counts_and_the_first_does_not() -> None:
    rows = [row(1, 50), row(10, 2), row(30, 4), row(20, 8)]
    rates = recorded_rates(rows, 40, 1000, "runs/a")
    assert rates is not None
    assert (rates.train, rates.predict) == (20, 10)
    assert rates.utilisation == pytest.approx(0.02)
    assert rates.origin == "recorded by runs/a, 3 epochs"
    assert (rates.device, rates.devices, rates.scaled) == ("", 1, False)


def test_a_lone_epoch_counts_and_none_gives_none() -> None:
    rates = recorded_rates([row(5, 2)], 40, 1000, "runs/a")
    assert rates is not None
    assert rates.train == 5
    assert recorded_rates([], 40, 1000, "runs/a") is None


def test_a_model_of_half_the_cost_runs_twice_as_fast_and_is_said_to_be_scaled() -> None:
    rates = recorded_rates([row(5, 2)], 40, 500, "runs/a")
    assert rates is not None
    assert (rates.train, rates.predict) == (10, 40)
    assert "not measured" in rates.origin
    assert rates.scaled


def test_epochs_count_that_were_on_the_devices_of_the_last_one() -> None:
    one, four = {"device": "NVIDIA L4", "devices": 1}, {"device": "NVIDIA L4", "devices": 4}
    rows = [row(1, 9, **four), row(10, 8, **one), row(11, 8, **one), row(40, 2, **four), row(42, 4, **four)]
    rates = recorded_rates(rows, 30, 1000, "runs/a")
    assert rates is not None
    assert (rates.train, rates.predict) == (41, 10)
    assert (rates.device, rates.devices) == ("NVIDIA L4", 4)
    assert rates.origin == "recorded by runs/a, 2 epochs on 4 × NVIDIA L4"


def test_what_a_validation_had_to_do_may_be_unknown() -> None:
    rates = recorded_rates([row(5, 2)], None, 500, "runs/a")
    assert rates is not None
    assert (rates.train, rates.predict) == (10, None)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_real_steps_are_measured(config: Config, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    monkeypatch.setattr("bts_dist.rates._SECONDS", 0.05)
    config = with_overrides(config, {"train.precision": precision, "train.global_batch": 8})
    data = PackedData(config.data.shards, config.store, config.data)
    rates = measured_rates(config, data)
    assert rates.predict is not None
    assert rates.predict > rates.train > 0
    assert rates.devices == 1
    assert 0 < rates.utilisation < 1
    assert "steps of 8 random slices of 32 × 32" in rates.origin


def test_a_step_that_others_slowed_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bts_dist.rates._SECONDS", 0.0)
    pauses = iter([0.0, 0.01, 1.0, 0.01])
    rate = _rate(lambda: time.sleep(next(pauses)), 1, torch.device("cpu"))
    assert rate > 10
