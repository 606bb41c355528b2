import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.errors import InputError
from shards.parallel import ahead, process_map


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


@pytest.mark.parametrize("workers", [1, 2])
def test_tasks_are_drawn_as_they_are_needed(workers: int) -> None:
    drawn: list[int] = []

    def tasks() -> Iterator[int]:
        for number in range(99):
            drawn.append(number)
            yield number

    for taken, _ in enumerate(process_map(workers)(square, tasks()), start=1):
        assert taken <= len(drawn) <= taken + 2 * workers
    assert taken == len(drawn) == 99


@pytest.mark.parametrize("threads", [1, 3])
def test_results_worked_out_ahead_come_in_order(threads: int) -> None:
    drawn: list[int] = []

    def tasks() -> Iterator[int]:
        for number in range(20):
            drawn.append(number)
            yield number

    def work(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number

    for position, result in enumerate(ahead(work, tasks(), threads)):
        assert result == position
        assert len(drawn) == min(20, position + 1 + threads)
    assert len(drawn) == 20


def test_the_next_result_is_worked_out_while_the_last_is_used() -> None:
    begun = threading.Event()

    def work(number: int) -> int:
        if number == 1:
            begun.set()
        return number

    results = ahead(work, [0, 1, 2])
    assert next(results) == 0
    assert begun.wait(60)
    assert list(results) == [1, 2]


def test_an_error_worked_out_ahead_is_raised_in_its_place() -> None:
    results = ahead(lambda number: 6 // number, [3, 2, 0, 1], threads=2)
    assert [next(results), next(results)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_caller_that_leaves_early_cancels_what_is_ahead() -> None:
    done: list[int] = []
    results = ahead(done.append, range(100))
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert len(done) <= 2


WORK = """
import os, time

def work(seconds):
    print(os.getpid(), flush=True)
    time.sleep(seconds)
"""

PARENT = """
import sys
from shards.parallel import process_map
from work import work

print("main", flush=True)
if __name__ == "__main__":
    list(process_map(2)(work, [float(sys.argv[1])] * 2))
"""


def start_parent(folder: Path, seconds: float) -> subprocess.Popen[str]:
    """A program with two workers, each of which says its process id and sleeps."""
    (folder / "work.py").write_text(WORK)
    (folder / "parent.py").write_text(PARENT)
    command = [sys.executable, str(folder / "parent.py"), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_workers_do_not_run_the_program_s_main_module(tmp_path: Path) -> None:
    with start_parent(tmp_path, 0) as parent:
        output, _ = parent.communicate()
    assert parent.returncode == 0
    assert output.split().count("main") == 1
    assert len(output.split()) == 3


def test_workers_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    with start_parent(tmp_path, 600) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "main\n"
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        parent.send_signal(signal.SIGKILL)
        # The pipe closes when the last process that holds it has gone; without that, the test times out.
        assert parent.stdout.read() == ""
    assert len(set(workers)) == 2
