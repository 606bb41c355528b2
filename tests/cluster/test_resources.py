"""Requests a cluster can never meet are refused at once."""

import os

import pytest
import ray

from bts_dist.config import ClusterConfig
from cluster.ray_map import ray_map
from cluster.resources import check_resources, decided, max_concurrent, ray_cluster
from shards.errors import InputError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def test_more_cpus_than_there_are_is_bad_input() -> None:
    have = ray.cluster_resources()["CPU"]
    with pytest.raises(InputError, match=rf"need {2 * have:g} CPU, the cluster has {have:g}"):
        check_resources(ClusterConfig(workers=2, cpus_per_worker=have))


def test_gpus_are_counted_too() -> None:
    with pytest.raises(InputError, match="gpus_per_worker"):
        check_resources(ClusterConfig(workers=1, gpus_per_worker=1000))
    # Without any, none are used unless they are asked for.
    assert check_resources(ClusterConfig(workers=1)).gpus == 0
    assert decided(ClusterConfig(workers=1)) == ClusterConfig(workers=1, gpus_per_worker=0)


def test_trials_side_by_side_are_counted_by_their_workers() -> None:
    have = int(ray.cluster_resources()["CPU"])
    assert max_concurrent(ClusterConfig(workers=1), 1000) == have
    assert max_concurrent(ClusterConfig(workers=1), 1000, asked=2000) == have
    assert max_concurrent(ClusterConfig(workers=1), 1) == 1
    assert max_concurrent(ClusterConfig(workers=have), 1000) == 1


def test_a_running_cluster_is_shared_and_left_running() -> None:
    with ray_cluster(ClusterConfig(workers=1)):
        assert ray.is_initialized()
    assert ray.is_initialized()


def test_every_process_knows_the_dashboard_that_frees_stopped_trials() -> None:
    # With two clusters on a machine Ray's own guess fails, and a stopped trial's CPUs are lost.
    def address() -> str:
        return os.environ["RAY_API_SERVER_ADDRESS"]

    (found,) = ray_map()(lambda _: address(), [None])
    assert found == f"http://{ray._private.worker.get_dashboard_url()}"


def test_room_for_the_fewest_workers_is_enough() -> None:
    have = int(ray.cluster_resources()["CPU"])
    check_resources(ClusterConfig(workers=(1, have + 5)))
    with pytest.raises(InputError, match=rf"^{have + 1} workers"):
        check_resources(ClusterConfig(workers=(have + 1, have + 5)))
    assert max_concurrent(ClusterConfig(workers=(1, have)), 1000) == have
