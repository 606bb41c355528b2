"""Checkpoints written beside the training: what is saved is the state as it was, and no failure is lost."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bts_dist import checkpoint
from bts_dist.attempt import FencedError, begin
from bts_dist.checkpoint import Progress, TrainState, checkpoint_name
from bts_dist.config import Config
from bts_dist.optim import Ema, make_optimizer
from bts_dist.saver import Saver
from shards.store import LocalStore, StoreError


@pytest.fixture
def state(config: Config) -> TrainState:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))
    optimizer = make_optimizer(config.optim, model)
    model(torch.randn(2, 3, 8, 8)).square().mean().backward()
    optimizer.step()
    return TrainState(model, optimizer, Ema(model, 0.9), Progress(step=7))


class Held(LocalStore):
    """Takes nothing in until it is let."""

    def __init__(self, root: Path) -> None:
        super().__init__(str(root), root)
        object.__setattr__(self, "let", threading.Event())

    def put(self, key: str, data: bytes | memoryview | Path, *, if_absent: bool = False) -> None:
        if key.startswith("checkpoints/"):
            assert self.let.wait(30)  # type: ignore[attr-defined]
        super().put(key, data, if_absent=if_absent)


def test_training_goes_on_while_the_state_as_it_was_is_written(
    state: TrainState, config: Config, tmp_path: Path
) -> None:
    run = Held(tmp_path / "run")
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    with Saver(begin(run, None), keep=2) as saver:
        saver.save(state, config, checkpoint_name(7, 1))
        assert checkpoint.names(run) == []
        assert saver.published == 0
        with torch.no_grad():
            for tensor in [
                *state.model.state_dict().values(),
                *(state.ema.weights.values() if state.ema else ()),
            ]:
                tensor.zero_()
            for moments in state.optimizer.state.values():
                moments["exp_avg"].zero_()
        state.progress.step = 9
        run.let.set()  # type: ignore[attr-defined]
    assert saver.published == 7
    folder = checkpoint.fetch(run, checkpoint_name(7, 1), tmp_path / "there")
    assert checkpoint.read_progress(folder).step == 7
    checkpoint.load(state, folder)
    assert all(torch.equal(value, before[name]) for name, value in state.model.state_dict().items())
    assert all(moments["exp_avg"].any() for moments in state.optimizer.state.values())


def test_a_state_is_not_copied_over_one_that_is_still_on_its_way(
    state: TrainState, config: Config, tmp_path: Path
) -> None:
    run = Held(tmp_path / "run")
    with Saver(begin(run, None), keep=2) as saver:
        saver.save(state, config, checkpoint_name(7, 1))
        before = state.model.state_dict()["0.weight"].clone()
        with torch.no_grad():
            state.model.state_dict()["0.weight"].zero_()
        threading.Timer(0.1, run.let.set).start()  # type: ignore[attr-defined]
        saver.save(replace_step(state, 8), config, checkpoint_name(8, 1))
    for step, weight in ((7, before), (8, torch.zeros_like(before))):
        folder = checkpoint.fetch(run, checkpoint_name(step, 1), tmp_path / str(step))
        checkpoint.load(state, folder)
        assert torch.equal(state.model.state_dict()["0.weight"], weight)


class Broken(LocalStore):
    def put(self, key: str, data: bytes | memoryview | Path, *, if_absent: bool = False) -> None:
        if key.endswith("optim.safetensors"):
            raise StoreError("the disk is gone")
        super().put(key, data, if_absent=if_absent)


@pytest.mark.parametrize("raised", ["at the next one", "at the end"])
def test_a_failure_is_raised_at_the_next_call_or_at_the_end(
    state: TrainState, config: Config, tmp_path: Path, raised: str
) -> None:
    run = Broken("", tmp_path)
    with pytest.raises(StoreError, match="disk is gone"), Saver(begin(run, None), keep=2) as saver:  # noqa: PT012
        saver.save(state, config, checkpoint_name(7, 1))
        if raised == "at the next one":
            saver.save(state, config, checkpoint_name(8, 1))
            pytest.fail("it went on")


def test_what_was_saved_before_an_interruption_is_not_lost(
    state: TrainState, config: Config, tmp_path: Path
) -> None:
    run = Held(tmp_path)
    with pytest.raises(KeyboardInterrupt), Saver(begin(run, None), keep=2) as saver:  # noqa: PT012
        saver.save(state, config, checkpoint_name(7, 1))
        threading.Timer(0.1, run.let.set).start()  # type: ignore[attr-defined]
        raise KeyboardInterrupt
    assert checkpoint.names(run) == ["step-00000007-a1"]
    checkpoint.fetch(run, "step-00000007-a1", tmp_path / "there")


def test_a_worker_left_over_publishes_and_deletes_nothing(
    state: TrainState, config: Config, tmp_path: Path
) -> None:
    run = LocalStore("", tmp_path)
    zombie = begin(run, None)
    attempt = begin(run, None)
    with Saver(attempt, keep=1) as saver:
        saver.save(replace_step(state, 20), config, checkpoint_name(20, 2))
    before = run.list("checkpoints/")
    with pytest.raises(FencedError), Saver(zombie, keep=1) as saver:
        saver.save(replace_step(state, 30), config, checkpoint_name(30, 1))
    assert run.list("checkpoints/") == before


def test_a_worker_overtaken_while_it_uploads_deletes_nothing(
    state: TrainState, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = LocalStore("", tmp_path)
    zombie = begin(run, None)
    publish = checkpoint.publish
    monkeypatch.setattr(checkpoint, "publish", after(publish, lambda: begin(run, None)))
    monkeypatch.setattr(checkpoint, "prune", lambda *_: pytest.fail("it deletes"))
    with pytest.raises(FencedError), Saver(zombie, keep=1) as saver:
        saver.save(state, config, checkpoint_name(7, 1))
    assert saver.published == 0


def test_the_newest_are_kept(state: TrainState, config: Config, tmp_path: Path) -> None:
    run = LocalStore("", tmp_path)
    with Saver(begin(run, None), keep=2) as saver:
        for step in (1, 2, 3, 4):
            saver.save(replace_step(state, step), config, checkpoint_name(step, 1))
    assert checkpoint.names(run) == ["step-00000004-a1", "step-00000003-a1"]


def replace_step(state: TrainState, step: int) -> TrainState:
    return replace(state, progress=replace(state.progress, step=step))


def after(done: Callable[..., Any], then: Callable[[], object]) -> Callable[..., Any]:
    def wrapped(*arguments: Any) -> Any:
        result = done(*arguments)
        then()
        return result

    return wrapped
