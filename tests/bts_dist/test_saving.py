"""When a training saves, on a clock of the test's own."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bts_dist import saving as module
from bts_dist.attempt import begin
from bts_dist.compose import load_config
from bts_dist.recovery import FAILURES
from bts_dist.saving import Saving
from shards.store import LocalStore

STEP_S = 0.5


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@dataclass
class Bench:
    """A training whose steps take half a second, and what it does about saving."""

    clock: Clock
    saving: Saving
    progress: Any
    run: LocalStore
    notes: list[str]

    def steps(
        self, number: int, step_s: float = STEP_S, *, epoch: int | None = None, validation_s: float = 0.0
    ) -> list[int]:
        """Take so many steps, and save after those that say so; the steps after which it was not an epoch's end."""
        saved = []
        for _ in range(number):
            self.progress.step += 1
            self.clock.now += step_s
            if epoch is not None and self.progress.step % epoch == 0:
                self.clock.now += validation_s
                self.saving.save()
            elif self.saving.due():
                self.saving.save()
                saved.append(self.progress.step)
        return saved


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bench]:
    def make(*sets: str, preemption: Callable[[float], float | None] = lambda now: None) -> Bench:
        clock, progress, notes = Clock(), SimpleNamespace(step=0), list[str]()
        monkeypatch.setattr(module, "time", clock)
        run = LocalStore(str(tmp_path), tmp_path)
        runtime = SimpleNamespace(
            rank=0, world_size=1, device=torch.device("cpu"), preemption=lambda: preemption(clock.now)
        )
        trainer: Any = SimpleNamespace(
            config=load_config([], ["train.checkpoint_minutes=null", *sets]),
            runtime=runtime,
            state=SimpleNamespace(progress=progress),
            all_reduce=lambda tensor: tensor,
            checkpoint_name="name",
        )
        saver: Any = SimpleNamespace(attempt=begin(run, None), took_s=2.0, save=lambda *_: None)
        tracker: Any = SimpleNamespace(flush=lambda: None, note=lambda step, text: notes.append(text))
        return Bench(clock, Saving(trainer, saver, tracker), progress, run, notes)

    return make


def test_without_a_reason_nothing_is_saved_within_an_epoch(bench: Callable[..., Bench]) -> None:
    assert bench().steps(1000) == []


def test_steps_and_minutes(bench: Callable[..., Bench]) -> None:
    assert bench("train.checkpoint_steps=40").steps(100) == [40, 80]
    by_minutes = bench("train.checkpoint_minutes=0.5").steps(200)
    # Half a minute is 60 steps; it is looked at every two seconds, which are four steps.
    assert len(by_minutes) == 3
    assert all(
        60 <= later - before <= 64 for before, later in zip([0, *by_minutes], by_minutes, strict=False)
    )


def test_an_epochs_own_checkpoint_puts_the_next_off(bench: Callable[..., Bench]) -> None:
    training = bench("train.checkpoint_minutes=0.5")
    assert training.steps(50) == []
    training.saving.save()
    assert training.steps(50) == []


def test_a_notice_saves_at_once_and_just_in_time(bench: Callable[..., Bench]) -> None:
    def notice(now: float) -> float | None:
        return max(0.0, 160 - now) if now >= 130 else None

    training = bench(preemption=notice)
    first, last = training.steps(118)
    at = [100 + STEP_S * step for step in (first, last)]
    assert 130 <= at[0] <= 132
    # A save takes two seconds, and there is time for it twice over.
    assert 150 <= at[1] <= 156
    assert [note.partition(" in ")[0] for note in training.notes] == [
        "a worker's node is taken away",
        "its node goes",
    ]
    (failure,) = training.run.list(FAILURES)
    assert b"taken away with notice" in training.run.get(failure.key)


def test_short_epochs_do_not_make_a_notice_come_too_late(bench: Callable[..., Bench]) -> None:
    def notice(now: float) -> float | None:
        return max(0.0, 160 - now) if now >= 130 else None

    # Two seconds of steps alone are five of these epochs, which take ten seconds.
    training = bench(preemption=notice)
    training.steps(240, 0.05, epoch=8, validation_s=1.6)
    assert training.clock.now > 160
    assert ["once more" in note for note in training.notes] == [False, True]
    at = [float(note.partition(" in ")[2].split()[0]) for note in training.notes]
    assert at[0] > 25
    assert 2 <= at[1] <= 10


def test_a_second_notice_counts_again(bench: Callable[..., Bench]) -> None:
    def notice(now: float) -> float | None:
        return next((end - now for end in (130, 190) if end - 20 <= now < end), None)

    assert len(bench(preemption=notice).steps(200)) == 4
