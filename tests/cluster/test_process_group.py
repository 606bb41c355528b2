"""Ranks that do not find each other are started again, a few times."""

from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError
from ray.train.torch import TorchConfig

from cluster.process_group import TRIES, NodeConfig
from shards.errors import InputError


class Workers:
    """Stands for the started workers: remembers what they were told to run."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def execute(self, work: Any) -> None:
        self.ran.append(work.__name__)


def test_ranks_that_do_not_find_each_other_are_started_again_and_then_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = NodeConfig(timeout_s=1)
    backend, workers = config.backend_cls(), Workers()
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
