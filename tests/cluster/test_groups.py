"""What is too much for a cluster today is waited for where the cluster can grow."""

from typing import Any

import pytest
import ray
from ray._private.resource_and_label_spec import ResourceAndLabelSpec

from bts_dist.config import ClusterConfig
from cluster.resources import NODE_GROUP, check_resources
from shards.errors import InputError

FOUR_GPUS = ClusterConfig(workers=4, gpus_per_worker=1)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A cluster of nothing but a head, as Ray would tell of it."""
    found: list[dict[str, Any]] = [{"Labels": {"ray.io/node-id": "f00"}}]
    monkeypatch.setattr(ray, "nodes", lambda: found)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"node:10.0.0.1": 1.0})
    return found


@pytest.mark.usefixtures("nodes")
def test_a_cluster_that_stays_as_it_is_refuses() -> None:
    with pytest.raises(InputError, match="need 4 CPU, the cluster has 0"):
        check_resources(FOUR_GPUS)


def test_a_cluster_of_groups_is_waited_for(nodes: list[dict[str, Any]]) -> None:
    nodes[0]["Labels"][NODE_GROUP] = "head"
    check_resources(FOUR_GPUS)


def test_ray_labels_a_node_with_the_group_it_was_started_for(monkeypatch: pytest.MonkeyPatch) -> None:
    # The variable is set by `ray up` (test_ray_up.py) and by KubeRay's operator.
    assert NODE_GROUP not in ResourceAndLabelSpec._get_default_labels(None)
    monkeypatch.setenv("RAY_NODE_TYPE_NAME", "gpu")
    assert ResourceAndLabelSpec._get_default_labels(None)[NODE_GROUP] == "gpu"
