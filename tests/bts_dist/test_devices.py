"""Devices are known by name, and counted once however many ranks share one."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bts_dist import devices
from bts_dist.devices import Devices, device_name, gather_devices
from bts_dist.runtime import LocalRuntime

CPU = torch.device("cpu")


def gathered(monkeypatch: pytest.MonkeyPatch, ranks: list[tuple[str, str]]) -> list[Devices]:
    """What each rank finds, of ranks on devices with these names and identities."""
    tables: list[Tensor] = []

    def ask() -> list[Devices]:
        found = []
        for rank, (name, identity) in enumerate(ranks):
            monkeypatch.setattr(devices, "device_name", lambda _, name=name: name)
            monkeypatch.setattr(devices, "_identity", lambda _, identity=identity: identity)
            found.append(gather_devices(LocalRuntime(rank, len(ranks), 0, CPU)))
        return found

    monkeypatch.setattr(devices, "all_reduce", lambda table: tables.append(table.clone()) or table)
    ask()
    total = torch.stack(tables).sum(dim=0)
    monkeypatch.setattr(devices, "all_reduce", lambda _: total)
    return ask()


def test_a_rank_alone_has_the_processor_to_itself(runtime: LocalRuntime) -> None:
    assert gather_devices(runtime) == Devices(device_name(runtime.device), 1)


@pytest.mark.parametrize(
    ("ranks", "found"),
    [
        ([("NVIDIA L4", "a"), ("NVIDIA L4", "b")], Devices("NVIDIA L4", 2)),
        ([("NVIDIA L4", "a"), ("NVIDIA L4", "a"), ("NVIDIA L4", "b")], Devices("NVIDIA L4", 2)),
        ([("Tesla T4", "b"), ("NVIDIA L4", "a"), ("Tesla T4", "c")], Devices("NVIDIA L4 + Tesla T4", 3)),
        ([("Größe × 2 threads", "0"), ("Größe × 2 threads", "1")], Devices("Größe × 2 threads", 2)),
    ],
)
def test_all_ranks_find_the_same(
    monkeypatch: pytest.MonkeyPatch, ranks: list[tuple[str, str]], found: Devices
) -> None:
    assert gathered(monkeypatch, ranks) == [found] * len(ranks)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor\t: 0\nmodel name\t: EPYC 7\n\nmodel name\t: EPYC 7\n", "EPYC 7 × 1 thread"),
        ("processor\t: 0\nCPU part\t: 0xd0c\n", "CPU × 1 thread"),
        (None, "CPU × 1 thread"),
    ],
)
def test_a_processor_is_called_as_linux_calls_it(tmp_path: Path, text: str | None, name: str) -> None:
    place = tmp_path / "cpuinfo"
    if text is not None:
        place.write_text(text)
    assert device_name(CPU, place) == name
