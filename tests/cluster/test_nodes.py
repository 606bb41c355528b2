"""What a real head with GPUs (of Ray's count only) and a real autoscaler tells of the room there is and may be."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import yaml
from ray.core.generated import autoscaler_pb2
from ray_nodes import Node, Nodes, free_port

from cluster import nodes
from cluster.placement import NodeType, Room
from shards.errors import InputError

COMMANDS = (
    "initialization",
    "setup",
    "head_setup",
    "worker_setup",
    "head_start_ray",
    "worker_start_ray",
)

AUTOSCALING = {
    "cluster_name": "test",
    "max_workers": 3,
    "idle_timeout_minutes": 1,
    "provider": {
        "type": "fake_multinode",
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "auth": {"ssh_user": "nobody"},
    "docker": {},
    "file_mounts": {},
    "file_mounts_sync_continuously": False,
    **{f"{name}_commands": [] for name in COMMANDS},
    **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
        "small": {"resources": {"CPU": 4, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
}

DRIVER = """
import json, sys, time
import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.experimental.internal_kv import _internal_kv_get
from bts_dist.config import ClusterConfig
from cluster.nodes import BOOTSTRAP, read_room
from cluster.placement import place
from cluster.ray_map import ray_map
from shards.errors import InputError

def told(**asked):
    try:
        placed = place(ClusterConfig(**asked), read_room(), cuda=True)
        return [placed.gpus, placed.now, *placed.notes]
    except InputError as error:
        return str(error)

ray.init(address=sys.argv[1], log_to_driver=False)
end = time.monotonic() + 60
while not read_room().autoscaling:
    assert time.monotonic() < end, "the autoscaler says nothing"
    time.sleep(0.5)
unknown = told(workers=40)
BOOTSTRAP.expanduser().write_text(sys.argv[2])
waited = False
for _ in ray_map()(lambda seconds: time.sleep(seconds), 5 * [1]):
    load = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS))["load_metrics_report"]
    # A task that waits beside one that runs is what a node is started for.
    waited |= bool(load["resource_demand"] and load["usage"]["CPU"][0])
print(json.dumps([waited, unknown, told(workers=2), told(workers=4), told(workers=40)]))
"""


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose name leaves room for those of Ray's sockets, of at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="bts-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.ray
def test_a_head_that_scales(short_path: Path) -> None:
    config = short_path / "autoscaling.yaml"
    config.write_text(json.dumps(AUTOSCALING))
    cluster = Nodes(free_port(), short_path / "ray")
    environment = {
        **cluster.environment,
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "HOME": str(short_path),
    }
    command = f"ray start --head --block --port={cluster.port} --temp-dir={short_path}/ray --num-cpus=1 --num-gpus=2"
    options = ["--include-dashboard=false", "--disable-usage-stats", "--object-store-memory=100000000"]
    log = short_path / "head.log"
    with log.open("w") as output:
        head = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("ray")),
                *command.split()[1:],
                *options,
                f"--autoscaling-config={config}",
            ],
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + 60
        while "Ray runtime started" not in log.read_text():
            assert head.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        driver = subprocess.run(
            [sys.executable, "-c", DRIVER, cluster.address, json.dumps(AUTOSCALING)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert driver.returncode == 0, driver.stderr + log.read_text()
    finally:
        Node(head).kill()
    waited, unknown, two, four, forty = json.loads(driver.stdout.splitlines()[-1])
    # The nodes that could be started have GPUs.
    assert not waited
    # One worker finds room: a GPU each, and one CPU on the head.
    assert unknown[:2] == [1, 1]
    assert "waiting up to" in unknown[2]
    assert two[:2] == [1, 1]
    # Two small nodes have a GPU each: four workers have none, and four CPUs each.
    assert four[:2] == [0, 1]
    assert "with a GPU each, 2 of 4 workers find room" in four[2]
    assert "waiting up to" in four[3]
    assert "40 workers with 1 CPU each can never run here" in forty
    assert "room for 9" in forty


@pytest.mark.parametrize(
    ("version", "kind", "scales"), [(0, "", False), (7, "", False), (7, "workers", True)]
)
def test_the_second_version_of_the_autoscaler_numbers_its_reports(
    monkeypatch: pytest.MonkeyPatch, version: int, kind: str, scales: bool
) -> None:
    reply = autoscaler_pb2.GetClusterStatusReply()
    reply.autoscaling_state.autoscaler_state_version = version
    reply.cluster_resource_state.node_states.add().ray_node_type_name = kind
    client = SimpleNamespace(get_cluster_status=reply.SerializeToString)
    monkeypatch.setattr(ray._private.worker.global_worker, "gcs_client", client, raising=False)
    assert nodes._new_autoscaler() is scales


def test_the_file_of_ray_up_is_read_with_its_limits(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(AUTOSCALING))
    room = nodes._bootstrapped(({"CPU": 1.0},), path)
    kinds = NodeType({"CPU": 1}, 1), NodeType({"CPU": 4, "GPU": 1}, 2)
    assert room == Room(({"CPU": 1.0},), True, kinds, 4)
    path.write_text("[]")
    with pytest.raises(InputError, match="is no config of `ray up`"):
        nodes._bootstrapped((), path)
