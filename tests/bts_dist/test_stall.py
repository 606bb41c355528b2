"""A rank that does one thing for too long names itself, and the one that waits for it tells people."""

import re
import threading
import time
from pathlib import Path

import pytest

from bts_dist import stall as module
from bts_dist.account import Account, Activity
from bts_dist.attempt import Attempt, begin
from bts_dist.checkpoint import Progress
from bts_dist.lease import own
from bts_dist.recovery import beating, interruption, record_failure
from bts_dist.stall import STALLS, stall, watching
from shards.store import LocalStore


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
    monkeypatch.setattr(module, "STILL_S", 0.1)
    monkeypatch.setattr(module, "LOOK_S", 0.02)
    return LocalStore(str(tmp_path), tmp_path)


def told(run: LocalStore, attempt: Attempt, rank: int, activity: Activity, seconds: float) -> list[str]:
    """What a rank tells people while it does something for so long."""
    texts: list[str] = []
    account = Account()
    with watching(attempt, rank, account, texts.append), account.doing(activity):
        time.sleep(seconds)
    return texts


def test_a_rank_that_stands_still_names_itself_and_where(run: LocalStore) -> None:
    attempt, account = begin(run, None), Account()
    with watching(attempt, 3, account, pytest.fail):
        with account.doing("data"):
            time.sleep(0.5)
            text = stall(run, attempt.number)
        assert text is not None
        # This file stands for one of the package's.
        here = r"test_stall\.py:\d+ in test_a_rank_that_stands_still_names_itself_and_where"
        assert re.fullmatch(rf"rank 3 \(process \d+ on .+\) has stood still for \d+ s in data, {here}", text)
        end = time.monotonic() + 10
        while run.list(STALLS):  # it has got on
            assert time.monotonic() < end
            time.sleep(0.01)


def test_who_waits_for_others_is_not_at_fault(run: LocalStore) -> None:
    attempt = begin(run, None)
    for activity in ("exchange", "validation_wait"):
        assert told(run, attempt, 0, activity, 0.3) == []
        assert stall(run, attempt.number) is None


def test_who_gets_on_does_not_stand_still(run: LocalStore) -> None:
    attempt, account = begin(run, None), Account()
    with watching(attempt, 0, account, pytest.fail):
        for _ in range(30):
            with account.doing("compute"):
                time.sleep(0.01)
    assert not run.list(STALLS)


def test_rank_0_tells_people_once_of_each_that_stands_still(run: LocalStore) -> None:
    attempt = begin(run, None)
    run.put(f"{STALLS}{attempt.number:06d}-2.json", b'{"text": "rank 2 has stood still"}')
    run.put(f"{STALLS}{attempt.number + 1:06d}-1.json", b'{"text": "of another attempt"}')
    assert told(run, attempt, 0, "exchange", 0.5) == ["rank 2 has stood still"]
    assert told(run, attempt, 1, "exchange", 0.3) == []


def test_an_attempt_that_ended_so_was_ended_by_it(run: LocalStore) -> None:
    with own(run, pytest.fail) as owner:
        first = begin(run, owner)
        run.put(f"{STALLS}{first.number:06d}-1.json", b'{"text": "rank 1 has stood still"}')
        with pytest.raises(RuntimeError), beating(first, Progress(step=7)):
            raise RuntimeError
        # What the others met when they gave up comes from it.
        record_failure(first, "rank 0: DistBackendError: timed out")
        found = interruption(run, begin(run, owner))
    assert found is not None
    assert found.cause == "rank 1 has stood still"


def test_a_store_that_is_down_stops_nothing(run: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt, down = begin(run, None), threading.Event()

    def put(*arguments: object, **options: object) -> None:
        down.set()
        raise OSError("down")

    monkeypatch.setattr(LocalStore, "put", put)
    assert told(run, attempt, 1, "data", 0.3) == []
    assert down.is_set()
