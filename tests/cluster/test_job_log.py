"""A job's log is printed once and whole, whatever happens to the connection it comes over."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.job_submission import JobStatus

from cluster import job_log
from cluster.dashboard import ServerError
from cluster.job_log import JobLog
from shards.errors import UnreachableError

LOG = [f"line {n}\n" for n in range(20)]
SILENCE = UnreachableError("no Ray dashboard answers")
BROKEN = ServerError("the cluster at http://head:8265 answers with status 500: GCS is gone")
GONE = RuntimeError("the cluster at http://head:8265 answers with status 404: Job pack-1 does not exist")


class Board:
    """A dashboard whose connections break after so many lines each, and which sends a log from its start."""

    url = "http://head:8265"

    def __init__(self, breaks: list[int], outages: int = 0, error: Exception = SILENCE) -> None:
        self._breaks, self._outages, self._error = list(breaks), outages, error

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        lines = self._breaks.pop(0) if self._breaks else None
        for line in LOG[:lines]:
            yield line
        if lines is not None:
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

    def get_job_logs(self, job: str) -> str:
        return "".join(LOG)

    def get_job_info(self, job: str) -> Any:
        if self._outages:
            self._outages -= 1
            raise self._error
        return SimpleNamespace(status=JobStatus.RUNNING if self._breaks else JobStatus.SUCCEEDED)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_log, "CHECK_S", 0.01)
    monkeypatch.setattr(job_log, "RETRY_S", 0.0)


@given(breaks=st.lists(st.integers(0, len(LOG)), max_size=6))
def test_connections_that_break_lose_and_repeat_nothing(breaks: list[int]) -> None:
    said: list[str] = []
    board: Any = Board(breaks)
    assert JobLog(board, "job", write=said.append).follow().status == JobStatus.SUCCEEDED
    assert "".join(said) == "".join(LOG)


def test_what_was_printed_before_is_not_repeated() -> None:
    said: list[str] = []
    board: Any = Board([])
    JobLog(board, "job", printed=len("".join(LOG[:15])), write=said.append).follow()
    assert "".join(said) == "".join(LOG[15:])


@pytest.mark.parametrize("error", [SILENCE, BROKEN])
def test_a_short_outage_is_waited_for(error: Exception) -> None:
    said: list[str] = []
    board: Any = Board([3, 1], outages=2, error=error)
    assert JobLog(board, "job", write=said.append).follow().status == JobStatus.SUCCEEDED
    assert "".join(said) == "".join(LOG)


@pytest.mark.parametrize("error", [SILENCE, BROKEN])
def test_a_long_outage_says_that_the_job_may_go_on(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_log, "OUTAGE_S", 0.05)
    board: Any = Board([3], outages=10**6, error=error)
    with pytest.raises(
        RuntimeError, match="The job pack-1 goes on if its cluster does; later: `bts logs pack-1 -f"
    ):
        JobLog(board, "pack-1", write=lambda text: None).follow()


def test_a_job_that_the_cluster_does_not_know_is_not_waited_for() -> None:
    board: Any = Board([3], outages=10**6, error=GONE)
    with pytest.raises(RuntimeError, match="status 404: Job pack-1 does not exist"):
        JobLog(board, "pack-1", write=lambda text: None).follow()


def test_an_outage_at_the_last_request_loses_nothing() -> None:
    said: list[str] = []

    class LastOutage(Board):
        def get_job_logs(self, job: str) -> str:
            if self._outages:
                self._outages -= 1
                raise self._error
            return super().get_job_logs(job)

        def get_job_info(self, job: str) -> Any:
            return SimpleNamespace(status=JobStatus.SUCCEEDED)

    board: Any = LastOutage([3], outages=2)
    assert JobLog(board, "job", write=said.append).follow().status == JobStatus.SUCCEEDED
    assert "".join(said) == "".join(LOG)
