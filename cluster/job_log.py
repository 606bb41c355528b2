"""A job's log as it grows, until the job has ended."""

import asyncio
import sys
import time
from dataclasses import dataclass
from typing import Any

import aiohttp

from cluster.dashboard import Dashboard
from shards.errors import UnreachableError

CHECK_S = 5.0
"""Seconds between two looks at the job itself, whose log may be silent because its connection is dead."""
OUTAGE_S = 120.0
"""How long a head that does not answer is waited for."""


@dataclass
class JobLog:
    """The log of a job, printed once: what is followed again goes on where it was left."""

    dashboard: Dashboard
    job: str
    printed: int = 0

    def follow(self) -> Any:
        """Print what comes until the job has ended, and return Ray's ``JobDetails`` of it.

        Raises:
            UnreachableError: the head has not answered for ``OUTAGE_S``.
        """
        return asyncio.run(self._follow())

    async def _follow(self) -> Any:
        while True:
            connection = asyncio.create_task(self._print())
            try:
                while not connection.done():
                    await asyncio.wait({connection}, timeout=CHECK_S)
                    if not connection.done() and (await self._details()).status.is_terminal():
                        await asyncio.wait({connection}, timeout=CHECK_S)
                        break
            finally:
                connection.cancel()
            details = await self._details()
            if details.status.is_terminal():
                return details
            await asyncio.sleep(1)

    async def _print(self) -> None:
        """Print the log over one connection: until its end, or until the connection breaks."""
        seen = 0
        try:
            async for text in self.dashboard.tail_job_logs(self.job):
                fresh = text[max(0, self.printed - seen) :]
                seen += len(text)
                self.printed = max(self.printed, seen)
                sys.stdout.write(fresh)
                sys.stdout.flush()
        except (aiohttp.ClientError, RuntimeError):
            return  # whether the job has ended is asked apart

    async def _details(self) -> Any:
        end = time.monotonic() + OUTAGE_S
        while True:
            try:
                return await asyncio.to_thread(self.dashboard.get_job_info, self.job)
            except UnreachableError as error:
                if time.monotonic() > end:
                    raise UnreachableError(
                        f"{error}\nThe job {self.job} goes on if its cluster does"
                    ) from error
                await asyncio.sleep(CHECK_S)
