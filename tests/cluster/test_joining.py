"""Which cluster a command joins: none that was not named to it."""

import os
from typing import Any

import pytest
import ray

from bts_dist.config import ClusterConfig
from cluster import resources
from cluster.resources import NICENESS, ray_cluster
from shards.errors import InputError


def joined(address: str | None, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What Ray is asked to join, where it refuses."""
    asked: list[Any] = []

    def refuse(address: str, **options: object) -> None:
        asked.append(address)
        raise ConnectionError("nobody there")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(resources, "check_head", lambda address: None)
    monkeypatch.setattr(resources, "ensure_token", lambda: None)
    monkeypatch.setattr(resources, "hide_token", lambda: None)
    with pytest.raises((ConnectionError, InputError)), ray_cluster(ClusterConfig(address=address)):
        pass
    return asked


def test_without_an_address_ray_starts_here_whatever_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert joined(None, monkeypatch) == ["local"]
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert joined(None, monkeypatch) == ["local"]
    line = capsys.readouterr().out
    assert "RAY_ADDRESS=10.0.0.1:6379 is left alone" in line
    assert "--set cluster.address=auto joins that cluster" in line


@pytest.mark.parametrize(("asked", "started"), [(None, "0"), ("10", "10")])
def test_workers_started_here_get_their_share_of_a_busy_machine(
    asked: str | None, started: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NICENESS, "to be restored")
    monkeypatch.delenv(NICENESS)
    if asked is not None:
        monkeypatch.setenv(NICENESS, asked)
    joined(None, monkeypatch)
    assert os.environ[NICENESS] == started


def test_an_address_is_what_it_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    # Ray itself follows the variable for ``auto``, as it sets it for a job.
    assert joined("auto", monkeypatch) == ["auto"]
    assert joined("10.0.0.2:6379", monkeypatch) == ["10.0.0.2:6379"]
    assert capsys.readouterr().out == ""
