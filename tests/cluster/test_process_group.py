"""Ranks that do not find each other are started again, a few times."""

from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.train.torch import TorchConfig

from cluster.process_group import TRIES, NodeConfig
from shards.errors import InputError


class Workers:
    """Stands for the started workers on nodes of these addresses: remembers what they were told to run."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.ran: list[str] = []

    def execute(self, work: Any) -> list[str]:
        if work is ray.util.get_node_ip_address:
            return list(self.addresses)
        self.ran.append(work.__name__)
        return []


def test_ranks_that_do_not_find_each_other_are_started_again_and_then_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = NodeConfig(timeout_s=1)
    backend, workers = config.backend_cls(), Workers("10.0.0.1", "10.0.0.2")
    unreachable = RayTaskError("join", "Traceback …\nRuntimeError: Connection refused", RuntimeError())
    refusing = True

    def on_start(self: object, workers: Workers, config: TorchConfig) -> None:
        workers.ran.append("join")
        if refusing:
            raise unreachable

    monkeypatch.setattr(TorchConfig().backend_cls, "on_start", on_start)
    for _ in range(TRIES - 1):
        with pytest.raises(RayActorError, match="RuntimeError: Connection refused"):
            backend.on_start(workers, config)
    refusing = False
    backend.on_start(workers, config)
    assert workers.ran == ["_use_nodes_interface", "join"] * TRIES

    refusing = True
    for _ in range(TRIES - 1):
        with pytest.raises(RayActorError):
            backend.on_start(workers, config)
    with pytest.raises(
        InputError, match=r"cannot connect to each other \(RuntimeError: Connection refused\)"
    ):
        backend.on_start(workers, config)


def test_ranks_of_one_node_go_on_as_gloo_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchConfig().backend_cls, "on_start", lambda self, workers, config: None)
    workers = Workers("10.0.0.1", "10.0.0.1")
    NodeConfig(timeout_s=1).backend_cls().on_start(workers, NodeConfig(timeout_s=1))
    assert workers.ran == []
