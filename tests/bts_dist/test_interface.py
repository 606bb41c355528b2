"""The interface that Gloo is told, found on whatever machine this is."""

import os
import socket
from contextlib import suppress

import pytest

from bts_dist.interface import VARIABLE, address_towards, interface_of, use_interface
from bts_dist.runtime import torchrun_runtime


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """An interface of this machine that is no loopback, and its address; Gloo has been told nothing."""
    monkeypatch.setenv(VARIABLE, "")  # so that it is put back as it was
    monkeypatch.delenv(VARIABLE)
    for _, name in socket.if_nameindex():
        address = _source_address(name)
        if name != "lo" and address is not None:
            return name, address
    pytest.skip("this machine has no network")


def _source_address(name: str) -> str | None:
    """By another way than the module's: the address that is taken for what leaves by this interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode())
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        probe.connect(("255.255.255.255", 9))
        return str(probe.getsockname()[0])
    return None


def test_an_address_leads_to_its_interface(other: tuple[str, str]) -> None:
    name, address = other
    assert interface_of(address) == name
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.1") is None, "set aside for documentation (RFC 5737)"


def test_gloo_is_told_unless_the_user_has(other: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    name, address = other
    for unknown in ("127.0.1.1", "203.0.113.1", "::1", "2001:db8::1"):
        use_interface(unknown)
        assert VARIABLE not in os.environ
    use_interface(address)
    assert os.environ.pop(VARIABLE) == name
    monkeypatch.setenv(VARIABLE, "chosen0")
    use_interface(address)
    assert os.environ[VARIABLE] == "chosen0"


def test_the_own_address_on_the_way_to_a_host(other: tuple[str, str]) -> None:
    assert address_towards(other[1]) == other[1]
    assert address_towards("localhost") == "127.0.0.1"
    assert address_towards("no-such-host.invalid") is None


def test_torchruns_ranks_listen_where_they_reach_the_first(
    other: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, address = other
    with socket.socket() as probe:
        probe.bind((address, 0))
        port = probe.getsockname()[1]
    given = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
    given |= {"MASTER_ADDR": address, "MASTER_PORT": port}
    for variable, value in given.items():
        monkeypatch.setenv(variable, str(value))
    with torchrun_runtime():
        assert os.environ[VARIABLE] == name
