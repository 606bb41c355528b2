"""A node that says which group it belongs to is of a cluster that can grow, whatever its autoscaler has reported."""

import math
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import yaml
from ray._private.resource_and_label_spec import ResourceAndLabelSpec

from bts_dist.config import ClusterConfig
from cluster import nodes
from cluster.placement import Room, place
from cluster.resources import check_resources
from shards.errors import InputError

FOUR_GPUS = ClusterConfig(workers=4, gpus_per_worker=1)


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """The labels of a cluster's only node, a head, before any autoscaler reports; as Ray would tell of it."""
    labels = {"ray.io/node-id": "f00"}
    told: list[dict[str, Any]] = [{"Alive": True, "Resources": {"CPU": 4.0}, "Labels": labels}]
    monkeypatch.setattr(ray, "nodes", lambda: told)
    monkeypatch.setattr(ray._private.state.state, "get_cluster_config", lambda: None)
    for silent in ("_old_autoscaler", "_new_autoscaler"):
        monkeypatch.setattr(nodes, silent, lambda: False)
    monkeypatch.setattr(nodes, "_on_head", lambda: True)
    monkeypatch.setattr(nodes, "BOOTSTRAP", tmp_path / "none.yaml")
    return labels


@pytest.mark.usefixtures("head")
def test_a_cluster_that_stays_as_it_is_refuses() -> None:
    assert nodes.read_room() == Room(({"CPU": 4.0},))
    with pytest.raises(InputError, match="need 4 GPU, the cluster has 0"):
        place(FOUR_GPUS, nodes.read_room(), cuda=True)


def test_a_cluster_of_groups_is_waited_for(head: dict[str, str]) -> None:
    head[nodes.NODE_GROUP] = "head"
    assert nodes.read_room() == Room(({"CPU": 4.0},), True, None, math.inf)
    placed = place(FOUR_GPUS, nodes.read_room(), cuda=True)
    assert (placed.gpus, placed.now) == (1, 0)
    assert "waiting up to" in placed.notes[0]


def test_ray_labels_a_node_with_the_group_it_was_started_for(monkeypatch: pytest.MonkeyPatch) -> None:
    # The variable is set by `ray up` (test_ray_up.py) and by KubeRay's operator.
    assert nodes.NODE_GROUP not in ResourceAndLabelSpec._get_default_labels(None)
    monkeypatch.setenv("RAY_NODE_TYPE_NAME", "gpu")
    assert ResourceAndLabelSpec._get_default_labels(None)[nodes.NODE_GROUP] == "gpu"


def test_machines_that_one_has_may_still_be_joining(head: dict[str, str]) -> None:
    # As `ray up` leaves ray_cluster_local.yaml on the head: what a machine has is known when it joins.
    head[nodes.NODE_GROUP] = "local.cluster.node"
    kinds = {"local.cluster.node": {"node_config": {}, "resources": {}}}
    config = {"available_node_types": kinds, "head_node_type": "local.cluster.node", "max_workers": 3}
    nodes.BOOTSTRAP.write_text(yaml.safe_dump(config))
    assert place(FOUR_GPUS, nodes.read_room(), cuda=True).now == 0


@pytest.mark.usefixtures("head")
def test_on_a_joined_cluster_the_torch_of_this_machine_decides_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A head without GPUs may have a build of torch without CUDA, and its workers another."""
    told = [{"Alive": True, "Resources": {"CPU": 4.0, "GPU": 4.0}, "Labels": {}}]
    monkeypatch.setattr(ray, "nodes", lambda: told)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert check_resources(FOUR_GPUS.model_copy(update={"address": "auto"})).gpus == 1
    with pytest.raises(InputError, match="built without CUDA here"):
        check_resources(FOUR_GPUS)
