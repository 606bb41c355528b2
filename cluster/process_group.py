"""Torch's process group over the nodes of a Ray cluster: each rank is reached where Ray reaches its node.

Ranks of one node alone go on as Gloo would have it, on most machines by the loopback.
"""

from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.train.torch import TorchConfig

from bts_dist.interface import VARIABLE, use_interface
from shards.errors import InputError

TRIES = 3
"""Starts in a row whose ranks do not find each other, after which it is no passing fault."""

_TorchBackend: type = TorchConfig().backend_cls


class _NodeBackend(_TorchBackend):
    """Ray keeps one in the process that starts a run's workers."""

    _in_vain = 0

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Connect the ranks.

        Raises:
            RayActorError: they did not find each other.  Ray starts the workers again.
            InputError: nor did they in the starts before.  It ends the training.
        """
        if len(set(worker_group.execute(ray.util.get_node_ip_address))) > 1:
            worker_group.execute(_use_nodes_interface)
        try:
            super().on_start(worker_group, backend_config)
        except RayTaskError as error:
            self._in_vain += 1
            text = str(error).splitlines()[-1]
            if self._in_vain < TRIES:
                raise RayActorError(error_msg=text) from error
            raise InputError(
                f"the workers cannot connect to each other ({text}); let the machines reach each other on all "
                f"ports, or name the interface of their network in {VARIABLE} (with GPUs, NCCL_SOCKET_IFNAME) before "
                "`ray start`"
            ) from error
        self._in_vain = 0


class NodeConfig(TorchConfig):
    """Ray's settings of a process group whose ranks listen on their nodes' own addresses."""

    @property
    def backend_cls(self) -> type:
        return _NodeBackend


def _use_nodes_interface() -> None:
    """What each worker does before it joins."""
    use_interface(ray.util.get_node_ip_address())
