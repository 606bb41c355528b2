"""``ray up`` of ray_cluster_local.yaml on hosts of their own, with Ray's own launcher, autoscaler and nodes.

Stand-ins are ssh and rsync (``remote_shell``), and on each host ``pip``, since Ray is there, and ``ray stop``, since a
fresh host has nothing to stop.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
import remote_shell
from cluster_files import LOCAL, ROOT, launcher
from hosts import Host, Network, obstacle
from ray_nodes import RAY

pytestmark = [pytest.mark.e2e, pytest.mark.hosts, pytest.mark.ray, pytest.mark.timeout(400)]

TOKEN = "0123456789abcdef" * 4
KEY = "WANDB_API_KEY=of-the-file"
UP_S = 180
"""``ray up`` is done: the head runs."""
JOIN_S = 150
"""Then the head sets up all others, side by side."""


@pytest.fixture
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    reason = obstacle()
    if reason is not None:
        pytest.skip(reason)
    place = tmp_path_factory.mktemp("u")
    # Ray's files lie in a folder of each host's own, as /tmp is of each machine.
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(place / "own"),
        "RAY_TMPDIR": str(place / "own"),
        "PYTHONPATH": str(ROOT),
        "USER": "root",
        "LANG": "C.UTF-8",
        "RAY_raylet_start_wait_time_s": "120",
    }
    with Network(place, environment) as network:
        yield network


def machine(network: Network, name: str) -> Host:
    """A host that lets one in, with a set-up begun earlier: the virtual environment is there."""
    host = network.add(name)
    programs = host.own / ".bts" / "venv" / "bin"
    remote_shell.programs(programs)  # there, since a login forgets every other PATH
    bodies = {"pip": "exit 0", "ray": f'[ "$1" = stop ] || exec {RAY} "$@"'}
    for program, body in bodies.items():
        (programs / program).write_text(f"#!/bin/sh\n{body}\n")
        (programs / program).chmod(0o755)
    host.start(sys.executable, "-S", remote_shell.__file__, "serve", host.address)
    return host


def laptop(network: Network, hosts: list[Host]) -> tuple[Path, dict[str, str]]:
    """A checkout and a home from which ``ray up`` is called, the places marked CHANGE changed."""
    home, checkout = network.folder / "home", network.folder / "checkout"
    texts = {".ray/auth_token": TOKEN, ".bts/keys": KEY, ".ssh/id_ed25519": "a private key"}
    for place, text in texts.items():
        (home / place).parent.mkdir(parents=True)
        (home / place).write_text(text + "\n")
    (checkout / "dist").mkdir(parents=True)
    (checkout / "dist" / "bts_dist-0.1.0-py3-none-any.whl").write_bytes(b"")
    shutil.copy(ROOT / "constraints.txt", checkout)
    shutil.copytree(ROOT / "configs", checkout / "configs")
    text = LOCAL.read_text(encoding="utf-8")
    provider = launcher(LOCAL)["provider"]
    for address, host in zip([provider["head_ip"], *provider["worker_ips"]], hosts, strict=True):
        text = text.replace(address, host.address)
    (checkout / LOCAL.name).write_text(text, encoding="utf-8")
    remote_shell.programs(home / "bin")
    path = f"{home / 'bin'}:{os.environ['PATH']}"
    return checkout, {"PATH": path, "HOME": str(home), "RAY_TMPDIR": str(home), "LANG": "C.UTF-8"}


def joined(head: Host) -> set[str]:
    """The addresses of all living nodes, as the dashboard tells one who has the token."""
    url = f"http://{head.address}:8265/api/v0/nodes?detail=1"
    try:
        with urlopen(Request(url, headers={"Authorization": f"Bearer {TOKEN}"}), timeout=30) as answer:
            nodes = json.load(answer)["data"]["result"]["result"]
    except (URLError, TimeoutError):
        return set()
    return {node["node_ip"] for node in nodes if node["state"] == "ALIVE"}


def test_every_machine_of_the_file_joins(network: Network) -> None:
    hosts = [machine(network, name) for name in ("head", "one", "two")]
    checkout, environment = laptop(network, hosts)
    words = [RAY, "up", "--yes", "--no-config-cache", LOCAL.name]
    done = subprocess.run(words, cwd=checkout, env=environment, capture_output=True, text=True, timeout=UP_S)
    assert done.returncode == 0, done.stdout + done.stderr + hosts[0].log.read_text()
    wanted = {host.address for host in hosts}
    end = time.monotonic() + JOIN_S
    while joined(hosts[0]) != wanted:
        assert time.monotonic() < end, f"of {wanted} these joined: {joined(hosts[0])}"
        time.sleep(1)
