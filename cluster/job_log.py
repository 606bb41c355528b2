"""A job's log as it grows, until the job has ended."""

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp

from cluster.dashboard import Dashboard, ServerError
from cluster.event_loop import run_unheld
from shards.errors import UnreachableError

CHECK_S = 5.0
"""Seconds between two looks at the job itself, whose log may be silent because its connection is dead."""
RETRY_S = 1.0
"""Seconds before a log whose connection broke is asked for again."""
OUTAGE_S = 120.0
"""How long a head that does not answer, or answers that something behind it does not, is waited for."""

Answer = TypeVar("Answer")


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@dataclass
class JobLog:
    """The log of a job, printed once: what is followed again goes on where it was left."""

    dashboard: Dashboard
    job: str
    printed: int = 0
    """Characters of it that need no printing any more."""
    write: Callable[[str], object] = _print

    def follow(self) -> Any:
        """Print what comes until the job has ended, and return Ray's ``JobDetails`` of it.

        Raises:
            RuntimeError: the head has not answered for ``OUTAGE_S``.
        """
        return run_unheld(self._follow())

    async def _follow(self) -> Any:
        while True:
            connection = asyncio.create_task(self._connect())
            try:
                while not connection.done():
                    await asyncio.wait({connection}, timeout=CHECK_S)
                    if not connection.done() and (await self._look()).status.is_terminal():
                        await asyncio.wait({connection}, timeout=CHECK_S)
                        break
            finally:
                connection.cancel()
            details = await self._look()
            if details.status.is_terminal():
                if connection.cancelled() or not connection.done() or not connection.result():
                    self._say(await self._ask(self.dashboard.get_job_logs), 0)
                return details
            await asyncio.sleep(RETRY_S)

    async def _connect(self) -> bool:
        """Print the log over one connection; whether it came to the log's end before it broke."""
        seen = 0
        try:
            async for text in self.dashboard.tail_job_logs(self.job):
                self._say(text, seen)
                seen += len(text)
        except (aiohttp.ClientError, RuntimeError, TimeoutError):
            return False  # whether the job has ended is asked apart
        return True

    def _say(self, text: str, start: int) -> None:
        """Print what is new in a piece of the log that begins at its character ``start``."""
        self.write(text[max(0, self.printed - start) :])
        self.printed = max(self.printed, start + len(text))

    async def _look(self) -> Any:
        return await self._ask(self.dashboard.get_job_info)

    async def _ask(self, request: Callable[[str], Answer]) -> Answer:
        """What the head answers about the job, once it does."""
        end = time.monotonic() + OUTAGE_S
        while True:
            try:
                return await asyncio.to_thread(request, self.job)
            except (UnreachableError, ServerError) as error:
                if time.monotonic() > end:
                    # No bad input: the job was taken.
                    raise RuntimeError(
                        f"{error}\nThe job {self.job} goes on if its cluster does; later: `bts logs {self.job} -f "
                        f"--address {self.dashboard.url}`"
                    ) from error
                await asyncio.sleep(CHECK_S)
