"""Two real processes sum tensors."""

import pytest

from bts_dist.exchange import measure_all_reduce


def test_two_processes_exchange_at_a_speed_that_can_be() -> None:
    assert 1e6 < measure_all_reduce(2, seconds=0.05) < 1e12


def test_a_process_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-interface")
    with pytest.raises(RuntimeError, match="no-such-interface"):
        measure_all_reduce(2, seconds=0.05)
