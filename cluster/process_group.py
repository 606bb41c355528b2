"""Torch's process group over the nodes of a Ray cluster: each rank is reached where Ray reaches its node."""

import ray
from ray.train.torch import TorchConfig

from bts_dist.interface import use_interface

_TorchBackend: type = TorchConfig().backend_cls


class _NodeBackend(_TorchBackend):
    def on_start(self, worker_group: object, backend_config: TorchConfig) -> None:
        worker_group.execute(_use_nodes_interface)  # type: ignore[attr-defined]
        super().on_start(worker_group, backend_config)


class NodeConfig(TorchConfig):
    """Ray's settings of a process group whose ranks listen on their nodes' own addresses."""

    @property
    def backend_cls(self) -> type:
        return _NodeBackend


def _use_nodes_interface() -> None:
    """What each worker does before it joins."""
    use_interface(ray.util.get_node_ip_address())
