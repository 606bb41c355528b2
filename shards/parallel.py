"""The same work on many things at once, in processes of this machine or in threads; never many things in memory."""

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from itertools import chain, islice
from multiprocessing import parent_process
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType
from typing import Any, TypeVar

Task = TypeVar("Task")
Done = TypeVar("Done")

ParallelMap = Callable[[Callable[[Task], Done], Iterable[Task]], Iterator[Done]]
"""``run(work, tasks)`` yields the results as they finish, in any order, and raises the first error.

Tasks are drawn as they are needed, a few ahead, so that a million of them take no more memory than ten.
"""


def process_map(workers: int | None) -> ParallelMap[Any, Any]:
    """Run tasks in up to ``workers`` processes, by default one for each CPU; a single one needs no process.

    An error, or a caller that stops listening, cancels the tasks that have not begun.  ``work`` and the tasks must be
    of importable modules: the processes do not know the program's main module.
    """

    def run(work: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        count = workers or os.cpu_count() or 1
        rest = iter(tasks)
        first = list(islice(rest, count))
        if len(first) <= 1:
            yield from map(work, chain(first, rest))
            return
        with ProcessPoolExecutor(len(first), _Context(), initializer=_follow_parent) as pool:
            # A second task for each process, so that none waits for this one.
            running = {pool.submit(work, task) for task in chain(first, islice(rest, count))}
            try:
                while running:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        running |= {pool.submit(work, task) for task in islice(rest, 1)}
                        yield future.result()
            finally:
                pool.shutdown(cancel_futures=True)

    return run


def ahead(work: Callable[[Task], Done], tasks: Iterable[Task], threads: int = 1) -> Iterator[Done]:
    """Results in the order of the tasks, up to ``threads`` of them worked out while the caller uses the last one."""
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        running: deque[Future[Done]] = deque()
        try:
            for task in tasks:
                running.append(pool.submit(work, task))
                if len(running) > threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


class _Process(SpawnProcess):
    """A process that begins without the program's main module, which it would otherwise import: the command line's
    draws in torch, and with it 2 s and 150 MB for each process."""

    def start(self) -> None:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            super().start()
        finally:
            sys.modules["__main__"] = main


class _Context(SpawnContext):
    """Processes are spawned, not forked: a fork of a process with threads (boto3's, BLAS's) can deadlock."""

    Process = _Process


def _follow_parent() -> None:
    """Leave interrupts to the parent, and end with it: the workers of a killed one would wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="follow-parent", daemon=True).start()
