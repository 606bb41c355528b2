"""The same work on many things at once, in processes of this machine."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

Task = TypeVar("Task")
Done = TypeVar("Done")

ParallelMap = Callable[[Callable[[Task], Done], Sequence[Task]], Iterator[Done]]
"""``run(work, tasks)`` yields the results as they finish, in any order, and raises the first error."""


def process_map(workers: int | None) -> ParallelMap[Any, Any]:
    """Run tasks in up to ``workers`` processes, by default one for each CPU; a single one needs no process.

    An error, or a caller that stops listening, cancels the tasks that have not begun.
    """

    def run(work: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        count = min(workers or os.cpu_count() or 1, len(tasks))
        if count <= 1:
            yield from map(work, tasks)
            return
        # Spawned, not forked: a fork of a process with threads (boto3's, BLAS's) can deadlock.
        with ProcessPoolExecutor(count, get_context("spawn"), initializer=_follow_parent) as pool:
            futures = [pool.submit(work, task) for task in tasks]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:
                pool.shutdown(cancel_futures=True)

    return run


def _follow_parent() -> None:
    """Leave interrupts to the parent, and end with it: the workers of a killed one would wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="follow-parent", daemon=True).start()
