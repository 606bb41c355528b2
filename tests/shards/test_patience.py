"""When another try is made, and after how long."""

from collections.abc import Iterator

import pytest

from shards.config import StoreConfig
from shards.patience import Patience


class Clock:
    """Time that passes only in pauses, which it lists."""

    def __init__(self) -> None:
        self.now = 1e6
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr("shards.patience.time", clock)
    return clock


def test_pauses_double_and_differ(clock: Clock) -> None:
    patience = Patience(attempts=10, deadline_s=1000)
    while patience.wait():
        pass
    ceilings = [0.5, 1, 2, 4, 8, 16, 20, 20, 20]
    assert len(clock.pauses) == len(ceilings)
    assert all(top / 2 <= made <= top for made, top in zip(clock.pauses, ceilings, strict=True))
    assert len(set(clock.pauses)) == len(ceilings)
    assert str(patience) == "store.attempts = 10 tries in a row have failed"


def test_a_pause_asked_for_is_made_and_no_two_are_alike(clock: Clock) -> None:
    for _ in range(2):
        assert Patience(attempts=2, deadline_s=1000).wait(7)
    assert all(7.25 <= made <= 7.5 for made in clock.pauses)
    assert len(set(clock.pauses)) == 2


def test_what_gets_on_is_given_up_at_the_deadline_only(clock: Clock) -> None:
    patience = Patience(attempts=2, deadline_s=60)
    while patience.wait():
        patience.progressed()
    assert len(clock.pauses) > 60
    assert 59 < sum(clock.pauses) < 60
    assert str(patience) == "store.deadline_s = 60 leaves no time for another try"
    assert not patience.overdue()
    clock.now += 1
    assert patience.overdue()


def test_no_pause_is_made_in_vain(clock: Clock) -> None:
    assert not Patience(attempts=9, deadline_s=60).wait(120)
    assert not Patience(attempts=1, deadline_s=60).wait()
    assert clock.pauses == []


def test_the_config_sets_both() -> None:
    patience = Patience.of(StoreConfig(attempts=7, deadline_s=11))
    assert (patience.attempts, patience.deadline_s) == (7, 11)
