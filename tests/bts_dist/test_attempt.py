"""Of a run's attempts the newest publishes."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from bts_dist.attempt import Attempt, FencedError, begin
from bts_dist.lease import own
from shards.store import LocalStore


def test_an_earlier_attempt_is_fenced(run: LocalStore) -> None:
    first = begin(run, None)
    first.check()
    second = begin(run, None)
    assert (first.number, second.number) == (1, 2)
    second.check()
    with pytest.raises(FencedError, match=r"this is attempt 1, and attempt 2 has begun"):
        first.check()


def test_workers_of_a_command_that_was_overtaken_do_not_begin(run: LocalStore) -> None:
    with own(run, pytest.fail):
        pass
    with own(run, pytest.fail) as owner:
        assert begin(run, owner) == Attempt(run, 1, owner)
        with pytest.raises(FencedError, match=r"another command \(owner 2\) has taken over"):
            begin(run, 1)
        assert begin(run, owner).number == 2


def test_attempts_that_begin_at_once_get_numbers_of_their_own(run: LocalStore) -> None:
    with ThreadPoolExecutor(8) as threads:
        attempts = list(threads.map(lambda _: begin(run, None).number, range(8)))
    assert sorted(attempts) == list(range(1, 9))
