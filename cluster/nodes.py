"""The nodes of the Ray cluster this process is connected to, and those that its autoscaler may start.

Ray has no public call for the latter.  Three places may tell, and which of them does depends on who started the
cluster: a platform's report to the head's store; the file that ``ray up`` leaves on the head; and, of an autoscaler
that keeps its limits to itself (KubeRay's), its own status.
"""

import json
import math
from pathlib import Path
from typing import Any

import ray
import yaml
from ray._private import ray_constants
from ray.core.generated import autoscaler_pb2
from ray.experimental.internal_kv import _internal_kv_get

from cluster.placement import NodeType, Room
from shards.errors import InputError

BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""Where ``ray up`` puts the cluster's config on the head."""

NODE_GROUP = "ray.io/node-group"
"""Ray's label of a node that names its group."""

_MIRRORED = "node_"
"""With no autoscaler, Ray's monitor calls each node a type of its own, ``node_<id>``."""


def read_room() -> Room:
    """What the cluster has, and may have."""
    nodes = tuple(node["Resources"] for node in ray.nodes() if node["Alive"])
    reported = ray._private.state.state.get_cluster_config()
    if reported is not None and reported.node_group_configs:
        return Room(nodes, True, tuple(_group(group) for group in reported.node_group_configs))
    if not (_grouped() or _old_autoscaler() or _new_autoscaler()):
        return Room(nodes)
    path = BOOTSTRAP.expanduser()
    if not (_on_head() and path.is_file()):
        return Room(nodes, True, None)
    return _bootstrapped(nodes, path)


def _grouped() -> bool:
    """Whether some node belongs to a group of which there may be more, as `ray up` and KubeRay tell each.

    A head knows it from its first second on, before its autoscaler has reported anything.
    """
    return any(NODE_GROUP in node.get("Labels", {}) for node in ray.nodes())


def _old_autoscaler() -> bool:
    """Whether the first version of the autoscaler runs, by the status it keeps in the head's store."""
    text = _internal_kv_get(ray_constants.DEBUG_AUTOSCALING_STATUS)
    report = (json.loads(text).get("autoscaler_report") if text else None) or {}
    types = (report.get("node_type_mapping") or {}).values()
    return any(not name.startswith(_MIRRORED) for name in types)


def _new_autoscaler() -> bool:
    """Whether the second version runs: it numbers the states that it reports, from 1 on."""
    reply = ray._private.worker.global_worker.gcs_client.get_cluster_status()
    status = autoscaler_pb2.GetClusterStatusReply.FromString(reply)
    nodes = status.cluster_resource_state.node_states
    named = any(node.ray_node_type_name for node in nodes)
    return status.autoscaling_state.autoscaler_state_version > 0 and named


def _on_head() -> bool:
    head = ray.get_runtime_context().gcs_address.rpartition(":")[0]
    return bool(head == ray.util.get_node_ip_address())


def _group(group: Any) -> NodeType:
    return NodeType(dict(group.resources), math.inf if group.max_count < 0 else group.max_count)


def _bootstrapped(nodes: tuple[dict[str, float], ...], path: Path) -> Room:
    """As the config of ``ray up`` says (its reference: "Cluster YAML Configuration Options").

    Raises:
        InputError: it is no such config.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        types, head, limit = config["available_node_types"], config["head_node_type"], config["max_workers"]
        found = [
            # The head is no worker, and there is one.
            NodeType(kind.get("resources", {}), kind.get("max_workers", limit) + (1 if name == head else 0))
            for name, kind in types.items()
        ]
        if not all(kind.get("resources") for kind in types.values()):
            return Room(nodes, True, None)  # machines that one has: each says what it is when it joins
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is no config of `ray up` ({type(error).__name__}: {error}); mend it, or remove it"
        ) from error
    return Room(nodes, True, tuple(found), limit + 1)
