"""Which group Ray's own scheduler takes machines from, asked with the clusters' files."""

from typing import Any

import pytest
from cluster_files import AWS, launcher, ray_clusters
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil


def pods(cluster: dict[str, Any]) -> dict[str, Any]:
    """A cluster on Kubernetes, as Ray reads it from KubeRay."""
    content = {"metadata": {"name": "bts", "namespace": "default"}, "spec": cluster}
    found: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(content)
    return found


def machines() -> dict[str, Any]:
    """That on AWS; what a machine has is asked of AWS, here by ``test_ray_up.py``."""
    found: dict[str, Any] = prepare_config(launcher(AWS))
    for name in ("gpu", "gpu_spot"):
        found["available_node_types"][name]["resources"] = {"CPU": 48, "GPU": 4}
    return found


def started(config: dict[str, Any], workers: int) -> dict[str, int]:
    """How many machines of each group come at once for so many workers with a GPU."""
    groups = AutoscalingConfig(config, skip_content_hash=True)
    asked = [ResourceRequestUtil.make({"CPU": 4, "GPU": 1}) for _ in range(workers)]
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=groups.get_node_type_configs(),
        max_num_nodes=groups.get_max_num_nodes(),
        resource_requests=ResourceRequestUtil.group_by_count(asked),
    )
    reply = ResourceDemandScheduler().schedule(request)
    # The scheduler counts the head among those that have to be, since none is told to it.
    head = config["head_node_type"]
    return {launch.instance_type: launch.count for launch in reply.to_launch if launch.instance_type != head}


@pytest.mark.parametrize(("name", "cluster"), ray_clusters())
def test_the_first_pod_is_on_a_spot_machine_and_the_groups_take_turns(
    name: str, cluster: dict[str, Any]
) -> None:
    assert started(pods(cluster), 4) == {"gpu-spot": 1}, name
    assert started(pods(cluster), 8) == {"gpu-spot": 1, "gpu": 1}
    assert started(pods(cluster), 24) == {"gpu-spot": 4, "gpu": 2}


def test_on_aws_all_spot_machines_come_first() -> None:
    assert started(machines(), 8) == {"gpu_spot": 2}
    assert started(machines(), 20) == {"gpu_spot": 4, "gpu": 1}
