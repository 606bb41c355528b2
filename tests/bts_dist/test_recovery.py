"""What an interruption cost is told from what the attempt before left behind."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bts_dist import recovery as module
from bts_dist.attempt import Attempt, begin
from bts_dist.checkpoint import Progress
from bts_dist.lease import own
from bts_dist.recovery import beating, interruption, noting_recovery, record_failure, recoveries
from bts_dist.track import METRICS, read_metrics
from shards.store import LocalStore


@pytest.fixture
def run(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path), tmp_path)


def log(run: LocalStore, *rows: dict[str, Any]) -> None:
    with (run.root / METRICS).open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_the_first_attempt_follows_none(run: LocalStore) -> None:
    assert interruption(run, begin(run, None)) is None


def test_what_ended_of_itself_was_not_interrupted(run: LocalStore) -> None:
    with beating(begin(run, None), Progress(step=7)):
        pass
    assert interruption(run, begin(run, None)) is None


def test_who_interrupts_it_wishes_it(run: LocalStore) -> None:
    with pytest.raises(KeyboardInterrupt), beating(begin(run, None), Progress()):
        raise KeyboardInterrupt
    assert interruption(run, begin(run, None)) is None


def test_a_failure_under_the_same_command_is_an_interruption(run: LocalStore) -> None:
    with own(run, pytest.fail) as owner:
        first = begin(run, owner)
        with pytest.raises(RuntimeError), beating(first, Progress(step=7)):
            raise RuntimeError
        record_failure(first, "rank 1 was lost")
        record_failure(first, "rank 0: connection closed")
        log(run, {"kind": "step", "step": 9, "time": 5.0})
        found = interruption(run, begin(run, owner))
    assert found is not None
    assert (found.attempt, found.step, found.cause) == (1, 9, "rank 1 was lost")
    assert found.time > 5.0


def test_a_command_that_told_its_user_of_the_failure_is_over(run: LocalStore) -> None:
    with own(run, pytest.fail) as owner:
        begin(run, owner)
    with own(run, pytest.fail) as owner:
        assert interruption(run, begin(run, owner)) is None


def test_a_killed_command_was_interrupted(run: LocalStore) -> None:
    with own(run, pytest.fail) as owner:
        begin(run, owner)
    (file,) = run.list("owners/")
    alive = json.loads(run.get(file.key)) | {"ended": False, "pid": 2**22 + 1}
    run.put(file.key, json.dumps(alive).encode())
    with own(run, lambda text: None) as owner:
        found = interruption(run, begin(run, owner))
    assert found is not None
    assert found.cause == "its command was killed"


def test_growing_is_no_loss(run: LocalStore) -> None:
    with own(run, pytest.fail) as owner:
        begin(run, owner, workers=1)
        found = interruption(run, begin(run, owner, workers=2))
    assert found is not None
    assert found.cause == "the cluster has room for 2 workers"


def test_a_waiting_attempt_does_not_pass_for_one_that_gets_on(
    run: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.01)
    attempt, progress = begin(run, None), Progress()
    written: list[int] = []
    monkeypatch.setattr(Attempt, "write", lambda self, step, ended=False: written.append(step))
    with beating(attempt, progress):
        for step in (3, 3, 8):
            progress.step = step
            _wait_for(written, step)
    assert written == [3, 8, 8]


def _wait_for(written: list[int], step: int) -> None:
    import time

    end = time.monotonic() + 10
    while step not in written:
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(0.05)


def test_the_cost_is_recorded_once_training_has_gone_on(
    run: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: 1042.0))
    progress = Progress(step=20)
    rows: list[tuple[str, int, dict[str, float]]] = []
    notes: list[str] = []
    tracker: Any = SimpleNamespace(
        log=lambda kind, step, row: rows.append((kind, step, row)), note=lambda step, text: notes.append(text)
    )
    before = module.Interruption(attempt=1, step=27, time=1000.0, cause="rank 1 was lost")

    def batches() -> Iterator[Any]:
        yield from "abc"

    taken = []
    for batch in noting_recovery(batches(), before, progress, tracker):
        taken.append(batch)
        assert bool(rows) == (len(taken) > 1)
        progress.step += 1
    assert taken == ["a", "b", "c"]
    assert rows == [("recovery", 21, {"down_s": 42.0, "steps_again": 7})]
    assert notes == [
        "attempt 1 was interrupted: rank 1 was lost; training went on after 42 s, 7 steps are done again"
    ]


def test_all_interruptions_of_a_run_are_listed(run: LocalStore) -> None:
    row = {"kind": "recovery", "step": 4, "time": 9.0, "down_s": 3.0, "steps_again": 2}
    log(run, {"kind": "step", "step": 1, "time": 1.0}, row, {**row, "down_s": 5.0})
    assert recoveries(run) == [{"down_s": 3.0, "steps_again": 2}, {"down_s": 5.0, "steps_again": 2}]
    assert len(read_metrics(run)) == 3
