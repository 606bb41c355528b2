"""A container's share of the machine is what counts, not the machine."""

import os
from pathlib import Path

import pytest

from shards.cpus import available_cpus


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 64 CPUs, all of them allowed."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))


@pytest.mark.usefixtures("roomy")
@pytest.mark.parametrize(
    ("quota", "cpus"), [("max 100000", 64), ("350000 100000", 4), ("10000 100000", 1), ("9900000 100000", 64)]
)
def test_the_quota_of_version_2(tmp_path: Path, quota: str, cpus: int) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert available_cpus(tmp_path) == cpus


@pytest.mark.usefixtures("roomy")
@pytest.mark.parametrize(("quota", "cpus"), [("-1", 64), ("200000", 2), ("150000", 2)])
def test_the_quota_of_version_1(tmp_path: Path, quota: str, cpus: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert available_cpus(tmp_path) == cpus


@pytest.mark.usefixtures("roomy")
def test_a_process_bound_to_some_cpus_counts_those(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert available_cpus(tmp_path) == 2


def test_this_machine_has_at_least_one() -> None:
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)
