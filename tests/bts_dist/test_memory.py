"""Memory that runs out: told with the settings in force, and with what to lower first."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bts_dist import memory, predict
from bts_dist import train as train_module
from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.memory import OutOfMemoryError, explained
from bts_dist.model import find_model
from bts_dist.runtime import LocalRuntime
from bts_dist.score import score_patients, tasks
from bts_dist.train import train
from shards.config import StoreConfig
from shards.reader import PackedData
from shards.store import LocalStore

ON_CPU = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
)
SHORTAGES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nAnd much more."),
    RuntimeError(f"{ON_CPU} allocate 8000 bytes."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
    MemoryError("Unable to allocate 1. GiB for an array"),
]


@pytest.mark.parametrize("error", SHORTAGES, ids=lambda e: f"{type(e).__name__} {str(e)[:12]}")
def test_every_shortage_is_explained(error: Exception) -> None:
    reason = str(error).partition("\n")[0] or "MemoryError"
    with pytest.raises(OutOfMemoryError) as caught, explained(lambda what: f"doing {what}", "sums"):
        raise error
    assert str(caught.value) == f"doing sums ({reason})"
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("x"), OSError()]
)
def test_other_errors_are_none_of_its_business(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, explained(lambda: pytest.fail("explained")):
        raise error
    assert caught.value is error


def on(device: str, world_size: int = 2) -> LocalRuntime:
    return LocalRuntime(1, world_size, 1, torch.device(device))


@pytest.mark.parametrize(
    ("settings", "device", "said"),
    [
        ({}, "cpu", "8 slices on a worker, 8 at once, 256 × 256 pixels, model.features 32, model.depth 5, bf16. Set "
            "train.micro_batch=4, which changes no result; then data.image_size=192, then model.features=16"),
        ({"train.micro_batch": 3}, "cuda", "3 at once, 256 × 256 pixels, model.features 32, model.depth 5, bf16. Set "
            "train.micro_batch=1, then data.cache=memory, which changes no result; then data.image_size=192"),
        ({"train.micro_batch": 1, "train.precision": "fp32"}, "cpu", "1 at once, 256 × 256 pixels, model.features 32, "
            "model.depth 5, fp32. Set train.precision=bf16 (fp16 on a GPU without bf16), then data.image_size=192"),
        ({"train.deterministic": True, "model.norm": "group"}, "cpu", "1 at once, 256 × 256 pixels, model.features 32, "
            "model.depth 5, bf16. Set data.image_size=192, then model.features=16"),
    ],
)  # fmt: skip
def test_what_changes_no_result_comes_first(settings: dict[str, Any], device: str, said: str) -> None:
    config = with_overrides(Config(), settings)
    text = memory.in_training(config, on(device), 16, (256, 256))
    assert text.startswith(
        f"rank 1 ran out of memory on {device} in a training step: global batch 16, 8 slices on a "
    )
    assert said in text


def test_the_advised_micro_batch_is_smaller_than_what_is_passed_now() -> None:
    """Seven slices on two ranks: with one slice at most, the rank of four still passes two at once."""
    config = with_overrides(Config(), {"train.global_batch": 7, "train.micro_batch": 1})
    text = memory.in_training(config, on("cpu"), 7, (64, 64))
    assert "4 slices on a worker, 2 at once" in text
    assert "micro_batch=" not in text
    halves = memory.in_training(with_overrides(config, {"train.micro_batch": None}), on("cpu"), 7, (64, 64))
    assert "Set train.micro_batch=2," in halves


def test_a_model_s_scores_are_not_changed_to_save_memory() -> None:
    scoring = with_overrides(Config(), {"score.batch": 32})
    model = with_overrides(Config(), {"train.precision": "fp32", "model.features": 8})
    text = memory.in_scoring(scoring, model, torch.device("cpu"), "HOME_1", (64, 48))
    assert text == (
        "out of memory on cpu scoring HOME_1: 32 slices at once, 64 × 48 pixels, model.features 8, model.depth 5, "
        "fp32. Set score.batch=16, which changes no result"
    )
    alone = memory.in_scoring(
        with_overrides(scoring, {"score.batch": 1}), model, torch.device("cpu"), "A", (64, 48)
    )
    assert alone.endswith("No setting makes it smaller; use a machine with more memory")


def short(*_: Any, **__: Any) -> Any:
    raise SHORTAGES[1]


def test_a_step_that_does_not_fit_ends_the_training(
    config: Config, run: LocalStore, runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "train_step", short)
    with pytest.raises(
        OutOfMemoryError, match=r"rank 0 .* in a training step: .* Set train\.micro_batch=2, "
    ):
        train(config, runtime, run, run.root)
    assert run.list("checkpoints/") == []


def test_a_validation_that_does_not_fit_ends_the_training(
    config: Config, run: LocalStore, runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "probabilities", short)
    with pytest.raises(
        OutOfMemoryError, match=r"rank 0 .* validating HOME_\w+: 32 slices .* Set score\.batch=16, "
    ):
        train(config, runtime, run, run.root)


def test_a_patient_that_does_not_fit_ends_the_scoring(
    config: Config, run: LocalStore, runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(with_overrides(config, {"train.epochs": 1}), runtime, run, run.root)
    patient = PackedData(config.data.shards).manifest.patients["test"][0]
    monkeypatch.setattr(predict, "probabilities", short)
    with pytest.raises(OutOfMemoryError, match=f"scoring {patient}: 32 slices .* Set score.batch=16"):
        score_patients(tasks(find_model(str(run.root), StoreConfig()), config, [patient], 1)[0])


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from bts_dist import train as module
from bts_dist.config import Config
from bts_dist.runtime import LocalRuntime
from shards.store import LocalStore

def limited(*arguments):
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = in_use + int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return step(*arguments)

step, module.train_step = module.train_step, limited
root = Path(sys.argv[2])
config = Config.model_validate_json(Path(sys.argv[1]).read_text())
module.train(config, LocalRuntime(0, 1, 0, torch.device("cpu")), LocalStore("", root), root)
"""
"""Trains in a process that may take so many bytes more once its first step begins."""


def test_a_process_whose_memory_is_limited_says_what_to_lower(config: Config, tmp_path: Path) -> None:
    large = with_overrides(config, {"train.global_batch": 8, "data.image_size": 256, "model.features": 64})
    path = tmp_path / "config.json"
    path.write_text(large.model_dump_json())
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path), str(tmp_path / "run"), str(2**28)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "bts_dist.memory.OutOfMemoryError: rank 0 ran out of memory on cpu in a training step"
    )
    assert "Set train.micro_batch=4, which changes no result" in last
