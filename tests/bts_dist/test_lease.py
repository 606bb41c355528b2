"""A run is trained by one command at a time."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bts_dist import lease
from bts_dist.lease import Owner, Sign, last_owner, last_writer, own, writing
from shards.errors import InputError
from shards.store import LocalStore


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.02)
    monkeypatch.setattr(lease, "PATIENCE_S", 0.4)


def elsewhere(run: LocalStore, count: int = 0, ended: bool = False) -> Owner:
    """Make a process of another machine the run's owner."""
    owner = Owner("gpu-7", "another machine", 4711, "1", count, ended)
    run.put("owners/000001.json", json.dumps(asdict(owner)).encode())
    return owner


def test_a_second_command_is_refused_and_told_by_whom(run: LocalStore) -> None:
    by_whom = rf"is being trained by process {os.getpid()} on "
    with own(run, pytest.fail), pytest.raises(InputError, match=by_whom), own(run, pytest.fail):
        pass


def test_one_after_another_is_no_conflict(run: LocalStore) -> None:
    for number in (1, 2, 3):
        with own(run, pytest.fail) as owner:
            assert owner == number


def test_an_owner_that_failed_is_no_hindrance(run: LocalStore) -> None:
    with pytest.raises(ZeroDivisionError), own(run, pytest.fail):
        raise ZeroDivisionError
    with own(run, pytest.fail) as owner:
        assert owner == 2


KILLED = """
import os, signal, sys
from pathlib import Path
from bts_dist.lease import own
from shards.store import LocalStore
with own(LocalStore("", Path(sys.argv[1])), print):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_owner_of_this_machine_is_known_to_be_dead_at_once(
    run: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "PATIENCE_S", 10_000)
    subprocess.run([sys.executable, "-c", KILLED, str(run.root)], check=False)
    notes: list[str] = []
    with own(run, notes.append) as owner:
        assert owner == 2
    assert len(notes) == 1
    assert "was training this run and is gone" in notes[0]


def test_a_writer_is_known_to_live_until_it_has_ended(run: LocalStore) -> None:
    assert last_writer(run, "abc") is None
    with own(run, pytest.fail):
        pass
    with writing(run, "abc"):
        sign = last_writer(run, "abc")
        assert sign is not None
        assert sign.lives(pytest.fail)
        owner = last_owner(run)
        assert owner is not None
        assert not owner.lives(pytest.fail)
    sign = last_writer(run, "abc")
    assert sign is not None
    assert not sign.lives(pytest.fail)


def test_a_writer_elsewhere_is_watched(run: LocalStore) -> None:
    with writing(run, "abc"):
        sign = last_writer(run, "abc")
        assert sign is not None
        there = replace(sign, owner=replace(sign.owner, machine="another machine"))
        assert there.lives(str)
    gone = replace(there.owner, ended=False)
    run.put(sign.key, json.dumps(asdict(gone)).encode())
    notes: list[str] = []
    assert not Sign(run, sign.key, gone).lives(notes.append)
    assert notes == [f"{gone} was at work on this run; looking for 0.4 s whether it still is"]


def test_a_later_process_of_the_same_number_is_not_taken_for_the_owner(run: LocalStore) -> None:
    mine = lease._this_process()
    run.put("owners/000001.json", lease._dump(replace(mine, born="1")))
    with own(run, lambda _: None) as owner:
        assert owner == 2


def test_an_owner_elsewhere_whose_count_stands_still_is_dead(run: LocalStore) -> None:
    elsewhere(run, count=5)
    notes: list[str] = []
    with own(run, notes.append) as owner:
        assert owner == 2
    assert notes == [
        "process 4711 on gpu-7 was training this run; looking for 0.4 s whether it still is",
        "process 4711 on gpu-7 was training this run and is gone; going on from what it saved",
    ]


def test_an_owner_elsewhere_whose_count_goes_on_lives(run: LocalStore) -> None:
    owner = elsewhere(run)
    stop = threading.Event()
    counting = threading.Thread(target=lease._count, args=(run, "owners/000001.json", owner, stop))
    counting.start()
    try:
        with (
            pytest.raises(InputError, match=r"being trained by process 4711 on gpu-7; .*run\.name"),
            own(run, str),
        ):
            pass
    finally:
        stop.set()
        counting.join()


def test_an_owner_elsewhere_that_ended_is_not_waited_for(run: LocalStore) -> None:
    elsewhere(run, ended=True)
    with own(run, pytest.fail) as owner:
        assert owner == 2


def test_of_many_at_once_one_owns(run: LocalStore) -> None:
    start, leave = threading.Barrier(8), threading.Event()

    def claim(_: int) -> bool:
        start.wait()
        try:
            with own(run, lambda _: None):
                leave.wait(30)
                return True
        except InputError:
            return False
        finally:
            finished.release()

    finished = threading.Semaphore(0)
    with ThreadPoolExecutor(8) as threads:
        claims = [threads.submit(claim, number) for number in range(8)]
        for _ in range(7):
            assert finished.acquire(timeout=30)
        leave.set()
        assert sorted(claim.result() for claim in claims) == [False] * 7 + [True]


def test_a_store_that_is_down_for_a_while_costs_nothing(tmp_path: Path) -> None:
    class Failing(LocalStore):
        down = True

        def put(self, key: str, data: bytes | memoryview | Path, *, if_absent: bool = False) -> None:
            if self.down and not if_absent:
                raise OSError("down")
            super().put(key, data, if_absent=if_absent)

    run = Failing("", tmp_path)
    with own(run, pytest.fail):
        threading.Event().wait(0.1)
        Failing.down = False
        threading.Event().wait(0.1)
        record = json.loads((tmp_path / "owners" / "000001.json").read_text())
        assert record["count"] > 0
