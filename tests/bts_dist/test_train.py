"""Training learns, resumes bit for bit, stops when told to, and saves nothing that is no good."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bts_dist import account, checkpoint
from bts_dist import train as module
from bts_dist.checkpoint import Progress
from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.data import Batch
from bts_dist.runtime import LocalRuntime, Metrics
from bts_dist.schedule import lr_factor
from bts_dist.step import Trainer, train_step
from bts_dist.track import read_metrics
from bts_dist.train import check_fit, train
from bts_dist.unet import UNet
from shards.errors import InputError
from shards.store import LocalStore

LEARNS = {"model.features": 8, "model.depth": 3, "optim.lr": 2e-2, "optim.ema": 0.8, "train.epochs": 5}


def run_at(root: Path, config: Config) -> tuple[LocalStore, Progress]:
    run = LocalStore(str(root), root)
    runtime = LocalRuntime(0, 1, 0, torch.device("cpu"))
    return run, train(config, runtime, run, root)


def newest(run: LocalStore) -> Path:
    return run.root / "checkpoints" / checkpoint.names(run)[0]


def rows(run: LocalStore) -> list[dict[str, Any]]:
    """Metrics rows without what depends on the clock."""
    timed = ("time", "samples_per_s", "share", "straggler", "flops", "peak", "mfu")
    return [
        {k: v for k, v in row.items() if not k.startswith(timed)}
        for row in read_metrics(run)
        if row["kind"] not in ("note", "recovery")
    ]


def test_training_learns_the_phantom(config: Config, tmp_path: Path) -> None:
    run, progress = run_at(tmp_path, with_overrides(config, LEARNS))
    epochs = read_metrics(run, "epoch")
    losses = [row["train/loss"] for row in epochs]
    assert losses[-1] < losses[0] - 0.1
    assert progress.val_dice[-1] > progress.val_dice[0] + 0.1
    assert progress.val_dice == [row["val/dice/patient"] for row in epochs]
    assert progress.epoch == 5
    assert progress.step == epochs[-1]["step"] == 5 * 8
    best = int(np.argmax(progress.val_dice)) + 1
    assert progress.best == checkpoint.checkpoint_name(8 * best, 1)


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(config: Config, tmp_path: Path) -> None:
    config = with_overrides(
        config, {**LEARNS, "train.epochs": 3, "schedule.kind": "plateau", "optim.grad_clip": 1}
    )
    whole, _ = run_at(tmp_path / "whole", config)
    stopped = LocalStore("", tmp_path / "stopped")
    first = StopsAfter(0, 1, 0, torch.device("cpu"), epochs=1)
    with pytest.raises(KeyboardInterrupt):
        train(config, first, stopped, stopped.root)
    assert [row["epoch"] for row in read_metrics(stopped, "epoch")] == [1]
    # Rows of an epoch that was never saved.
    with (stopped.root / "metrics.jsonl").open("a") as file:
        file.write(
            json.dumps({"kind": "step", "step": 9, "time": 0.0, "loss": 0.0}) + '\n{"kind": "step", "st'
        )
    resumed, _ = run_at(tmp_path / "stopped", config)
    assert "resuming after epoch 1" in read_metrics(resumed, "note")[-1]["text"]
    for name in ("model.safetensors", "ema.safetensors", "optim.safetensors"):
        assert (newest(whole) / name).read_bytes() == (newest(resumed) / name).read_bytes(), name
    assert rows(whole) == rows(resumed)
    before, after = (checkpoint.read_progress(newest(run)) for run in (whole, resumed))
    alike = {"wandb_id": None, "best": None}
    assert replace(before, **alike) == replace(after, **alike)
    assert before.best is not None
    assert after.best is not None
    assert checkpoint.step_of(before.best) == checkpoint.step_of(after.best)


class StopsAfter(LocalRuntime):
    """Interrupts training after so many epochs."""

    def __init__(self, *arguments: Any, epochs: int) -> None:
        super().__init__(*arguments)
        object.__setattr__(self, "epochs", epochs)

    def report(self, metrics: Metrics) -> None:
        if metrics["epoch"] == self.epochs:  # type: ignore[attr-defined]
            raise KeyboardInterrupt


def test_a_damaged_checkpoint_costs_an_epoch_and_is_noted(config: Config, tmp_path: Path) -> None:
    whole, _ = run_at(tmp_path / "whole", config)
    run, _ = run_at(tmp_path / "run", config)
    (newest(run) / "model.safetensors").write_bytes(b"")
    again, _ = run_at(tmp_path / "run", config)
    notes = [row["text"] for row in read_metrics(again, "note")]
    assert any(
        "skipping checkpoint step-00000016-a1: model.safetensors does not match" in note for note in notes
    )
    assert (newest(again) / "model.safetensors").read_bytes() == (
        newest(whole) / "model.safetensors"
    ).read_bytes()
    assert rows(whole) == rows(again)


def test_a_finished_run_is_left_as_it_is(config: Config, tmp_path: Path) -> None:
    run, before = run_at(tmp_path, config)
    files = {e.key for e in run.list("checkpoints/")}
    _, after = run_at(tmp_path, config)
    assert after == before
    assert {e.key for e in run.list("checkpoints/")} == files


def test_training_longer_goes_on_from_the_end(config: Config, tmp_path: Path) -> None:
    run_at(tmp_path, config)
    run, progress = run_at(tmp_path, with_overrides(config, {"train.epochs": 3}))
    assert [row["epoch"] for row in read_metrics(run, "epoch")] == [1, 2, 3]
    assert progress.epoch == 3


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_micro_batches_train_like_the_whole_batch(config: Config, tmp_path: Path, micro_batch: int) -> None:
    whole, _ = run_at(tmp_path / "whole", config)
    parts, _ = run_at(tmp_path / "parts", with_overrides(config, {"train.micro_batch": micro_batch}))
    for one, other in zip(rows(whole), rows(parts), strict=True):
        if one["kind"] == "step":
            assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
            assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


def test_early_stopping_waits_for_its_patience(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.1, 0.3, 0.2, 0.3, 0.9])
    validate = module.validate
    monkeypatch.setattr(module, "validate", lambda *a: replace(validate(*a), dice=next(scores)))
    stopping = with_overrides(config, {"train.epochs": 9, "train.early_stop": 2})
    _, progress = run_at(tmp_path, stopping)
    assert progress.val_dice == [0.1, 0.3, 0.2, 0.3]
    assert progress.best == "step-00000016-a1"
    assert train(stopping, *runtime_of(tmp_path)).epoch == 4


def runtime_of(root: Path) -> tuple[LocalRuntime, LocalStore, Path]:
    run = LocalStore(str(root), root)
    return LocalRuntime(0, 1, 0, torch.device("cpu")), run, root


def spoilt_step(at: int, spoil: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Any:
    def step(trainer: Trainer, batch: Batch, epoch: int, batch_size: int) -> tuple[Tensor, Tensor]:
        result = train_step(trainer, batch, epoch, batch_size)
        return spoil(*result) if trainer.state.progress.step + 1 == at else result

    return step


@pytest.mark.parametrize("log_every", [1, 1000])
@pytest.mark.parametrize(
    ("what", "spoil"),
    [
        ("loss is nan", lambda loss, norm: (loss * torch.nan, norm)),
        ("gradient's norm is inf", lambda loss, norm: (loss, norm + torch.inf)),
    ],
    ids=["loss", "gradient"],
)
def test_figures_that_are_not_finite_stop_training_before_anything_is_saved(
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    log_every: int,
    what: str,
    spoil: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> None:
    # In the second epoch's last step: the first one's checkpoint stays the newest.
    monkeypatch.setattr(module, "train_step", spoilt_step(16, spoil))
    with pytest.raises(FloatingPointError, match=what):
        run_at(tmp_path, with_overrides(config, {"train.log_every": log_every}))
    run = LocalStore("", tmp_path)
    assert checkpoint.names(run) == ["step-00000008-a1"]


def test_a_diverging_training_is_noticed(config: Config, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="at step"):
        run_at(tmp_path, with_overrides(config, {"optim.lr": 1e30}))
    assert checkpoint.names(LocalStore("", tmp_path)) == []


def test_a_weight_beyond_its_range_is_not_saved(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step that carried it there had a finite loss and gradient; the next one's would tell, after the save."""

    def spoil(loss: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            models[-1].heads[0].weight[0, 0] = torch.inf  # type: ignore[union-attr, index]
        return loss, norm

    models: list[UNet] = []
    make = module.make_unet
    monkeypatch.setattr(module, "make_unet", lambda *a, **k: models.append(make(*a, **k)) or models[-1])
    for at, checkpoint_steps, saved in (
        (4, 4, []),
        (8, None, []),
        (12, 4, ["step-00000008-a1", "step-00000004-a1"]),
    ):
        root = tmp_path / str(at)
        monkeypatch.setattr(module, "train_step", spoilt_step(at, spoil))
        with pytest.raises(
            FloatingPointError, match=f"heads.0.weight is not finite after the update at step {at}"
        ):
            run_at(root, with_overrides(config, {"train.checkpoint_steps": checkpoint_steps}))
        assert checkpoint.names(LocalStore("", root)) == saved


STEEP = {"train.precision": "fp16", "loss.bce": 1e3, "model.norm": "batch", "train.checkpoint_steps": 3}
"""Half precision, with a loss whose gradient overflows a few times between steps that go well."""


def test_a_run_in_half_precision_goes_on_bit_for_bit(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steep = with_overrides(config, STEEP)
    whole, _ = run_at(tmp_path / "whole", steep)

    def stop(*_: Tensor) -> tuple[Tensor, Tensor]:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train_step", spoilt_step(5, stop))
    with pytest.raises(KeyboardInterrupt):
        run_at(tmp_path / "stopped", steep)
    monkeypatch.undo()
    stopped = LocalStore("", tmp_path / "stopped")
    record = json.loads((newest(stopped) / "state.json").read_text())
    assert record["progress"]["step"] == 3
    assert record["scaler"]["scale"] < 2.0**16, "it restores what a new one would have"
    resumed, _ = run_at(tmp_path / "stopped", steep)
    for name in ("model.safetensors", "ema.safetensors", "optim.safetensors"):
        assert (newest(whole) / name).read_bytes() == (newest(resumed) / name).read_bytes(), name
    assert rows(whole) == rows(resumed)
    states = [json.loads((newest(run) / "state.json").read_text()) for run in (whole, resumed)]
    assert states[0]["scaler"] == states[1]["scaler"]
    assert states[0]["progress"]["skipped_steps"] == states[1]["progress"]["skipped_steps"] > 3


def test_in_half_precision_rows_tell_the_scale_and_the_schedule_goes_on(
    config: Config, tmp_path: Path
) -> None:
    run, progress = run_at(tmp_path / "half", with_overrides(config, STEEP))
    steps = read_metrics(run, "step")
    assert [row["step"] for row in steps] == list(range(1, 17))
    skipped = 0
    for before, row in zip([{"loss_scale": 2.0**16}, *steps], steps, strict=False):
        overflowed = row["loss_scale"] < before["loss_scale"]
        skipped += overflowed
        assert row["skipped_steps"] == skipped
        assert ("grad_norm" in row) is not overflowed
    assert 0 < skipped < 16
    assert progress.skipped_steps == skipped
    exact, _ = run_at(tmp_path / "exact", with_overrides(config, {**STEEP, "train.precision": "fp32"}))
    others = read_metrics(exact, "step")
    assert [row["lr"] for row in steps] == [row["lr"] for row in others]
    assert len({row["lr"] for row in steps}) == 16
    assert all({"loss_scale", "skipped_steps"}.isdisjoint(row) and "grad_norm" in row for row in others)


def test_the_logged_rate_is_the_one_that_was_used(config: Config, tmp_path: Path) -> None:
    plateau = with_overrides(
        config,
        {"schedule": {"kind": "plateau", "patience": 0, "factor": 0.5}, "optim.lr": 1e-9, "train.epochs": 3},
    )
    run, progress = run_at(tmp_path, plateau)
    assert progress.val_dice == [progress.val_dice[0]] * 3, "nothing is learnt at such a rate"
    wanted = [1e-9 * lr_factor(plateau.schedule, epoch, 3, progress.val_dice[:epoch]) for epoch in range(3)]
    assert wanted[2] < wanted[1]
    assert [row["lr"] for row in read_metrics(run, "epoch")] == wanted
    assert [row["lr"] for row in read_metrics(run, "step")][::8] == wanted


def test_speed_counts_the_samples_since_the_last_row(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()

    def step(trainer: Trainer, batch: Batch, epoch: int, batch_size: int) -> tuple[Tensor, Tensor]:
        clock.now += batch_size / 10
        return train_step(trainer, batch, epoch, batch_size)

    monkeypatch.setattr(module, "train_step", step)
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(account, "time", clock)
    # Every 3 steps of epochs of 8: rows fall differently in each epoch.
    run, _ = run_at(tmp_path, with_overrides(config, {"train.log_every": 3, "train.epochs": 3}))
    rates = [row["samples_per_s"] for row in read_metrics(run) if row["kind"] != "note"]
    assert len(rates) == 8 + 3
    assert rates == pytest.approx([10] * len(rates))


class Clock:
    """Time that only training steps take."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


def test_too_few_samples_for_the_workers_are_refused(config: Config) -> None:
    with pytest.raises(InputError, match=r"for 5 workers; lower cluster\.workers"):
        check_fit(config, 5)
    assert check_fit(config, 4).manifest.num_samples("train") == 32


def test_training_needs_a_split(config: Config, external: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no train patients; pack it with split\.kind=patient"):
        run_at(tmp_path, with_overrides(config, {"data.shards": str(external)}))
    with pytest.raises(InputError, match=r"nowhere"):
        run_at(tmp_path, with_overrides(config, {"data.shards": str(tmp_path / "nowhere")}))


def test_slices_must_divide_by_the_depth(config: Config) -> None:
    with pytest.raises(InputError, match=r"32 × 32 pixels do not divide by 64, which model\.depth 7 needs"):
        check_fit(with_overrides(config, {"model.depth": 7}), 1)


def test_another_data_set_is_refused(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_at(tmp_path, with_overrides(config, {"train.epochs": 1}))
    state = newest(LocalStore("", tmp_path)) / "state.json"
    record = json.loads(state.read_text())
    record["progress"]["data_id"] = "elsewhere"
    state.write_text(json.dumps(record))
    files = state.with_name("files.json")
    hashes = json.loads(files.read_text()) | {"state.json": checkpoint._sha256(state.read_bytes())}
    files.write_text(json.dumps(hashes))
    with pytest.raises(InputError, match="trained on data set elsewhere"):
        run_at(tmp_path, config)


def test_the_checkpoint_knows_whom_it_was_trained_and_chosen_on(config: Config, tmp_path: Path) -> None:
    _, progress = run_at(tmp_path, with_overrides(config, {"train.epochs": 1}))
    manifest = check_fit(config, 1).manifest
    assert progress.patients == sorted([*manifest.patients["train"], *manifest.patients["val"]])
    assert progress.data_id == manifest.data_id


def test_only_the_first_rank_writes(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DistributedDataParallel", lambda model, **_: model)
    run = LocalStore("", tmp_path / "run")
    second = LocalRuntime(1, 2, 1, torch.device("cpu"))
    monkeypatch.setattr(module, "_check_same_start", lambda *_: None)
    monkeypatch.setattr(module, "gather", lambda mine, _: [mine])
    progress = train(with_overrides(config, {"train.epochs": 1}), second, run, run.root)
    assert progress.epoch == 1
    assert run.list() == []


def test_a_machines_threads_are_divided_by_its_own_ranks(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, four = with_overrides(config, {"train.threads": None}), LocalRuntime(0, 4, 0, torch.device("cpu"))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    before = torch.get_num_threads()
    try:
        for sharing, threads in ((None, 2), ("1", 8), ("2", 4)):
            if sharing is not None:
                monkeypatch.setenv("LOCAL_WORLD_SIZE", sharing)
            module._set_up(own, four)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
