import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.errors import InputError
from shards.parallel import process_map


def square(number: int) -> tuple[int, int]:
    """The square, and the process that worked it out."""
    return number**2, os.getpid()


def refuse_one(task: tuple[int, str]) -> int:
    number, folder = task
    if number == 1:
        raise InputError("patient 1 is bad")
    time.sleep(0.2)
    Path(folder, str(number)).touch()
    return number


def test_every_task_is_done_once_in_other_processes() -> None:
    results = list(process_map(2)(square, range(20)))
    assert sorted(square for square, _ in results) == [n**2 for n in range(20)]
    assert os.getpid() not in {process for _, process in results}


@pytest.mark.parametrize(("workers", "tasks"), [(1, 3), (8, 1)])
def test_one_worker_or_one_task_needs_no_process(workers: int, tasks: int) -> None:
    results = list(process_map(workers)(square, range(tasks)))
    assert results == [(n**2, os.getpid()) for n in range(tasks)]


def test_no_tasks_are_no_work() -> None:
    assert list(process_map(None)(square, [])) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_is_raised_as_it_is_and_cancels_the_rest(workers: int, tmp_path: Path) -> None:
    tasks = [(number, str(tmp_path)) for number in range(40)]
    with pytest.raises(InputError, match=r"^patient 1 is bad$"):
        list(process_map(workers)(refuse_one, tasks))
    assert len(list(tmp_path.iterdir())) < 20


def test_a_caller_that_stops_listening_cancels_the_rest(tmp_path: Path) -> None:
    tasks = [(number, str(tmp_path)) for number in range(2, 40)]
    results: Iterator[int] = process_map(2)(refuse_one, tasks)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert len(list(tmp_path.iterdir())) < 20


PARENT = """
import os, sys, time
from shards.parallel import process_map

def work(task):
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    list(process_map(2)(work, range(2)))
"""


def test_workers_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(PARENT))
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        parent.send_signal(signal.SIGKILL)
        # The pipe closes when the last process that holds it has gone; without that, the test times out.
        assert parent.stdout.read() == ""
    assert len(set(workers)) == 2
