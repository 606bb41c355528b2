"""``bts estimate`` says where each figure comes from, and its arithmetic holds."""

import shutil
from pathlib import Path

import pytest
import torch

from bts_dist.config import Config
from bts_dist.rates import Rates
from bts_dist.run import open_run
from bts_dist.runtime import LocalRuntime
from bts_dist.train import train
from cluster.cli import guarded
from cluster.estimate import duration, on_instance
from cluster.prices import Instance, read_prices
from cluster.workload import Work
from shards.errors import InputError

PRICES = Path(__file__).parents[2] / "configs" / "prices.yaml"
WORK = [Work("train", 3600, 0, 0), Work("score", 0, 1800, 0)]


def words(config: Config, *more: str) -> list[str]:
    places = {"data.shards": config.data.shards, "run.dir": config.run.dir, "run.name": "test"}
    settings = {
        **places,
        "data.image_size": 32,
        "model.features": 4,
        "model.depth": 3,
        "train.epochs": 2,
        "train.global_batch": 8,
    }
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return ["estimate", *sets, "--prices", str(PRICES), *more]


def test_without_a_record_it_measures_and_with_one_it_reads(
    config: Config, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert guarded(words(config)) == 0
    printed = capsys.readouterr().out
    assert "measured here and now on" in printed
    assert "scaled by FLOP/s, not measured" in printed
    assert "p5.48xlarge" in printed
    run = open_run(config)
    root = Path(run.uri)
    train(config, LocalRuntime(0, 1, 0, torch.device("cpu")), run, root)
    assert guarded(words(config)) == 0
    assert f"recorded by {root}, 1 epochs" in capsys.readouterr().out
    # Another run's record, of a model with other costs.
    other = words(config, "--set", "run.name=other", "--set", "model.features=8", "--model", str(root))
    assert guarded(other) == 0
    assert "scaled by operations a slice" in capsys.readouterr().out


def test_what_is_missing_is_named(
    config: Config, capsys: pytest.CaptureFixture[str], tmp_path: Path, packed: Path
) -> None:
    assert guarded(words(config, "--set", f"data.shards={tmp_path}")) == 2
    assert "bts pack" in capsys.readouterr().err
    assert guarded([*words(config), "--prices", str(tmp_path / "none.yaml")]) == 2
    assert "--prices" in capsys.readouterr().err


def test_a_gpu_that_was_measured_is_not_scaled() -> None:
    rates = Rates(2.0, 4.0, 10**9, 1e12, "NVIDIA T4", "measured")
    same = Instance(name="a", gpus=2, gpu="NVIDIA T4", bf16_tflops=65, on_demand=1, spot=0.5)
    hours, how = on_instance(same, WORK, rates)
    assert hours == pytest.approx((3600 / 4 + 1800 / 8) / 3600)
    assert how.startswith("measured")
    hours, how = on_instance(same.model_copy(update={"gpu": "NVIDIA L4", "bf16_tflops": 4.0}), WORK, rates)
    assert hours == pytest.approx((3600 / 16 + 1800 / 32) / 3600)
    assert how == "at best: scaled by FLOP/s, not measured"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "is no YAML"),
        ("date: 2020", "currency"),
        (PRICES.read_text(encoding="utf-8").partition("instances:")[0] + "instances: []", "instances"),
    ],
)
def test_a_price_list_that_is_none(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_prices(path)


def test_the_price_list_that_comes_along_is_one_to_edit(tmp_path: Path) -> None:
    text = Path(shutil.copy(PRICES, tmp_path)).read_text(encoding="utf-8")
    assert "Edit me" in text
    assert all(each.spot <= each.on_demand for each in read_prices(PRICES).instances)


def test_durations_are_as_people_say_them() -> None:
    assert [duration(s) for s in (0.04, 59.94, 60, 3599.4, 3600, 5000)] == [
        "0.0 s",
        "59.9 s",
        "1 min 00 s",
        "59 min 59 s",
        "1 h 00 min",
        "1 h 23 min",
    ]
