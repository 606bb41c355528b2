"""``bts doctor`` on a cluster of several nodes: each is named, measured, and waited for only so long."""

import json
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from ray_nodes import Nodes, free_port

from cluster import doctor_nodes
from cluster.doctor_nodes import by_name, reaches

DRIVER = """
import json, os, signal, sys
from bts_dist.compose import with_overrides
from bts_dist.config import Config
from cluster import doctor_nodes
from cluster.doctor_services import cluster
from cluster.resources import ray_cluster

config = with_overrides(Config(), {"cluster.address": sys.argv[1], "cluster.workers": 2})
with ray_cluster(config.cluster):  # one connection for both looks
    doctor_nodes.START_S = doctor_nodes.ANSWER_S = 120.0  # other tests may run beside this one
    whole = cluster(config)
    frozen = [int(pid) for pid in sys.argv[2:]]
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    doctor_nodes.START_S = doctor_nodes.ANSWER_S = 2.0
    try:
        cut = cluster(config)
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
print(json.dumps([[[each.check, each.state, each.found] for each in look] for look in (whole, cut)]))
"""


def test_nodes_of_one_machine_are_told_apart() -> None:
    alive = [{"NodeManagerAddress": "10.0.0.1", "NodeID": letter * 56} for letter in "ab"]
    alive.append({"NodeManagerAddress": "10.0.0.2", "NodeID": "c" * 56})
    assert list(by_name(alive)) == ["10.0.0.1 (aaaaaaaa)", "10.0.0.1 (bbbbbbbb)", "10.0.0.2"]


def test_a_port_that_nobody_listens_at_is_not_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        place = ("127.0.0.1", listening.getsockname()[1])
        assert reaches(place)
    assert not reaches(place)


def test_clocks_that_differ() -> None:
    right = doctor_nodes._clocks({"a": 10.0, "b": 10.5}, {}, began=9.0, ended=10.4)
    assert (right.state, right.found) == ("ok", "2 nodes differ from this machine's by 0 s at most")
    wrong = doctor_nodes._clocks({"a": 10.0, "b": 100.0}, {}, began=9.0, ended=10.0)
    assert (wrong.state, wrong.found) == (
        "warning",
        "2 nodes differ from this machine's by 90 s at most (node b)",
    )


@pytest.mark.ray
def test_two_nodes_and_one_that_falls_silent() -> None:
    with tempfile.TemporaryDirectory(prefix="bts-", ignore_cleanup_errors=True) as folder:
        nodes = Nodes(free_port(), Path(folder) / "ray")
        try:
            nodes.start_head()
            first, second = nodes.add(), nodes.add()
            names = [node.ray_id[:8] for node in (first, second)]
            done = subprocess.run(
                [sys.executable, "-c", DRIVER, nodes.address, *map(str, second.pids())],
                env=nodes.environment,
                capture_output=True,
                text=True,
                timeout=400,
            )
        finally:
            nodes.stop()
    assert done.returncode == 0, done.stderr
    whole, cut = json.loads(done.stdout.splitlines()[-1])
    # bf16 is slow, and said to be, on a CPU without instructions for it.
    assert [each for each in whole if each[1] != "ok" and "arithmetic" not in each[0]] == []
    found = {check: text for check, _, text in whole}
    assert "3 nodes differ from this machine's by 0 s" in found["nodes' clocks"]
    assert sum("FLOP/s on cpu" in text for check, text in found.items() if "arithmetic, node" in check) == 2
    assert "GB/s between 2 nodes, one worker each, gloo: " in found["all-reduce, nodes"]
    assert all(name in found["all-reduce, nodes"] for name in names)
    states = {check: (state, text) for check, state, text in cut}
    state, text = states["nodes' clocks"]
    assert state == "warning"
    assert f"({names[1]}): no answer within 2 s" in text
    state, text = states["all-reduce, nodes"]
    assert state == "warning"
    assert "not measured: of 2 nodes with room for workers" in text
