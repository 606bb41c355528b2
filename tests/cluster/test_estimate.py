"""``bts estimate`` says where each figure comes from, and its arithmetic holds."""

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.devices import device_name
from bts_dist.rates import Rates
from bts_dist.run import open_run
from bts_dist.runtime import LocalRuntime
from bts_dist.track import read_metrics
from bts_dist.train import train
from cluster.cli import guarded
from cluster.estimate import duration, find_rates, on_instance
from cluster.pack_job import run_pack
from cluster.prices import Instance, read_prices
from cluster.workload import Work
from shards.errors import InputError
from shards.manifest import load_manifest
from shards.reader import PackedData
from shards.store import open_store
from shards.verify import verify_source

PRICES = Path(__file__).parents[2] / "configs" / "prices.yaml"
WORK = [Work("train", 3600, 0, 0), Work("score", 0, 1800, 0)]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates are measured in an instant; what they are is no matter here."""
    monkeypatch.setattr("bts_dist.rates._SECONDS", 0.05)


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
    assert "measured here and now by one process on" in printed
    assert "At these rates, of one device" in printed
    assert "scaled by FLOP/s, not measured" in printed
    assert "p5.48xlarge" in printed
    assert "choose" in printed
    assert "workers: 2 (cluster.workers), with a GPU each where" in printed
    run = open_run(config)
    root = Path(run.uri)
    train(config, LocalRuntime(0, 1, 0, torch.device("cpu")), run, root)
    assert guarded(words(config)) == 0
    name = device_name(torch.device("cpu"))
    assert f"recorded by {root}, 1 epochs on 1 × {name}" in capsys.readouterr().out
    # Another run's record, of a model with other costs.
    other = words(config, "--set", "run.name=other", "--set", "model.features=8", "--model", str(root))
    assert guarded(other) == 0
    assert "scaled by operations a slice" in capsys.readouterr().out
    search = ["tune.trials=2", "tune.search=grid", "tune.space={model.features: {choice: [4, 16]}}"]
    assert guarded(words(config, *(word for text in search for word in ("--set", text)))) == 0
    printed = capsys.readouterr().out
    assert re.search(r"models and sizes of up to 1\d\.\d × the operations a slice", printed)
    assert "--set 'tune.space={model.features: {choice: [4, 16]}}'" in printed, (
        "what comes next can be pasted"
    )
    # Folds that are yet to be packed, from the same patients.
    assert guarded(words(config, "--set", "split.fold=all")) == 0
    printed = capsys.readouterr().out
    assert f"5 folds of {config.data.shards}" in printed
    assert "score together" in printed
    assert "an epoch of the first fold" in printed


def test_a_run_on_other_data_is_taken_at_what_it_validated_itself(
    config: Config, phantom: Path, tmp_path: Path
) -> None:
    """Its own validation slices and mirroring count, not those of the config that asks."""
    own = tmp_path / "own"
    shutil.copytree(config.data.shards, own)
    trained = with_overrides(config, {"data.shards": str(own), "score.mirror": False, "train.epochs": 1})
    run = open_run(trained)
    train(trained, LocalRuntime(0, 1, 0, torch.device("cpu")), run, Path(run.uri))
    slices = load_manifest(open_store(str(own))).num_samples("val")
    # The config that asks has another data set: the same patients, split in another way.
    places = {"data.shards": str(tmp_path / "other"), "run.name": "asking"}
    other = with_overrides(config, {**places, "split.seed": 5, "cluster.runtime": "local", "pack.workers": 1})
    run_pack(other, verify_source(str(phantom), other.store, 1))
    data = PackedData(other.data.shards)
    (row,) = read_metrics(run, "epoch")
    rates = find_rates(other, data, run.uri)
    assert rates.predict == pytest.approx(slices / row["time/val_s"])
    # Where its data set has gone, or another one lies there, nobody knows.
    shutil.rmtree(own)
    assert find_rates(other, data, run.uri).predict is None
    shutil.copytree(other.data.shards, own)
    assert find_rates(other, data, run.uri).predict is None
    # Where it is the very data set that is asked about, its place does not matter.
    assert find_rates(trained, PackedData(config.data.shards), run.uri).predict == rates.predict


def test_what_nobody_knows_is_left_out_and_said(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = Rates(10.0, None, 10**6, 1e12, "NVIDIA L4", 1, "recorded by another run")
    monkeypatch.setattr("cluster.estimate.find_rates", lambda *_: rates)
    assert guarded(words(config)) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "prediction not known" in printed
    assert "times are of training alone" in printed
    assert printed.count("│ not known") == 2
    assert "validation not known" in printed


def test_what_is_missing_is_named(
    config: Config, capsys: pytest.CaptureFixture[str], tmp_path: Path, packed: Path
) -> None:
    assert guarded(words(config, "--set", f"data.shards={tmp_path}")) == 2
    assert "bts pack" in capsys.readouterr().err
    assert guarded([*words(config), "--prices", str(tmp_path / "none.yaml")]) == 2
    assert "--prices" in capsys.readouterr().err


def test_a_gpu_that_was_measured_is_not_scaled() -> None:
    rates = Rates(2.0, 4.0, 10**9, 1e12, "Tesla T4", 1, "measured")
    same = Instance(name="a", gpus=2, gpu="NVIDIA T4", bf16_tflops=65, on_demand=1, spot=0.5)
    hours, how = on_instance(same, WORK, rates)
    assert hours == pytest.approx((3600 / 4 + 1800 / 8) / 3600)
    assert how.startswith("measured")
    # Rates of four of them together are a fourth each.
    four = replace(rates, train=8.0, predict=16.0, devices=4, peak=4e12)
    assert on_instance(same, WORK, four) == (pytest.approx(hours), how)
    assert on_instance(same, WORK, replace(rates, predict=None))[0] == pytest.approx(0.25)
    assert "another model on this GPU" in on_instance(same, WORK, replace(rates, scaled=True))[1]
    hours, how = on_instance(same.model_copy(update={"gpu": "NVIDIA L4", "bf16_tflops": 4.0}), WORK, rates)
    assert hours == pytest.approx((3600 / 16 + 1800 / 32) / 3600)
    assert how == "at best: scaled by FLOP/s, not measured"


@pytest.mark.parametrize(
    ("listed", "driver", "same"),
    [
        ("H100", "NVIDIA H100 80GB HBM3", True),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3", True),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", False),
        ("H100", "NVIDIA H100 PCIe", True),
        ("NVIDIA T4", "Tesla T4", True),
        ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB", False),
        ("A100", "NVIDIA A100-SXM4-80GB", True),
        ("NVIDIA L4", "NVIDIA L40S", False),
        ("NVIDIA GeForce RTX 3080", "NVIDIA GeForce RTX 3080 Ti", False),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", False),
        ("NVIDIA L4", "NVIDIA A10G + NVIDIA L4", False),
        ("NVIDIA L4", "AMD EPYC × 2 threads", False),
        ("NVIDIA L4", "", False),
    ],
)
def test_a_gpu_is_known_by_its_drivers_name(listed: str, driver: str, same: bool) -> None:
    instance = Instance(name="a", gpus=1, gpu=listed, bf16_tflops=65, on_demand=1, spot=0.5)
    assert instance.has(driver) is same


@pytest.mark.parametrize("gpu", ["", "NVIDIA", " - "])
def test_a_gpu_without_a_name_is_refused(gpu: str) -> None:
    with pytest.raises(ValidationError, match="name the GPU"):
        Instance(name="a", gpus=1, gpu=gpu, bf16_tflops=65, on_demand=1, spot=0.5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "is no YAML"),
        ("date: 2020", "currency"),
        ("currency: \xa3", "is no YAML"),
        (PRICES.read_text(encoding="utf-8").partition("instances:")[0] + "instances: []", "instances"),
    ],
)
def test_a_price_list_that_is_none(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=message):
        read_prices(path)


def test_a_date_of_yamls_own_is_a_date(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(re.sub("(?m)^date: .*$", "date: 2026-11-25", PRICES.read_text(encoding="utf-8")))
    assert read_prices(path).date == "2026-11-25"


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


def test_rates_of_a_busy_machine_are_doubtful(
    config: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for load, doubtful in ((1e3, True), (0.0, False)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, load, load))
        assert guarded(words(config)) == 0
        assert ("warning others use this machine (load 1000.0)" in capsys.readouterr().out) is doubtful
