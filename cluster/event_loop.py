"""An event loop that Ctrl-C leaves at once, whatever a request still waits for."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from typing import Any, TypeVar, TypeVarTuple

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


def run_unheld(work: Coroutine[Any, Any, Result]) -> Result:
    """``asyncio.run``, whose end and that of the process wait for no thread that ``asyncio.to_thread`` started."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(work)


class _Loop(asyncio.SelectorEventLoop):
    """Runs blocking calls, those that look up a name among them, in daemon threads; those of a pool are joined."""

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Arguments], Result], *args: *Arguments
    ) -> asyncio.Future[Result]:
        assert executor is None
        done: Future[Result] = Future()

        def call() -> None:
            try:
                result = func(*args)
            except BaseException as error:  # noqa: BLE001 - handed over to whoever awaits it
                done.set_exception(error)
            else:
                done.set_result(result)

        done.set_running_or_notify_cancel()
        threading.Thread(target=call, name="request", daemon=True).start()
        return asyncio.wrap_future(done, loop=self)
