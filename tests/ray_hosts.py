"""A Ray cluster whose nodes are hosts of their own, reached from this machine as from outside."""

import secrets
import subprocess
import time
from dataclasses import dataclass, field

from hosts import Host, Network
from ray_nodes import RAY

START_S = 120


@dataclass
class RayHosts:
    """A head without CPUs, and nodes with one each; the network's environment must have what ``inside`` gives."""

    network: Network
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    _processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    @property
    def access(self) -> dict[str, str]:
        """The environment that lets a command in from outside."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    @property
    def inside(self) -> dict[str, str]:
        """The environment of the nodes: the same, and time to start for a busy machine."""
        return {**self.access, "RAY_raylet_start_wait_time_s": str(START_S)}

    @property
    def head(self) -> Host:
        return self.network.hosts["head"]

    @property
    def dashboard(self) -> str:
        """Where jobs are submitted."""
        return f"http://{self.head.address}:8265"

    def start_head(self) -> None:
        host = self.network.add("head")
        self._start(
            host,
            "--head",
            "--num-cpus=0",
            # Below a folder of the host's own, as are those of the other nodes, which take over its name.
            f"--temp-dir={self.network.own}",
            f"--dashboard-host={host.address}",
            "--include-dashboard=true",
        )
        self.wait(host)

    def add(self, name: str) -> Host:
        """Start a node; ``wait`` until it runs."""
        host = self.network.add(name)
        self._start(host, f"--address={self.head.address}:6379", "--num-cpus=1")
        return host

    def wait(self, *hosts: Host) -> None:
        end = time.monotonic() + START_S
        for host in hosts:
            while "Ray runtime started" not in host.log.read_text():
                assert self._processes[host.name].poll() is None, host.log.read_text()
                assert time.monotonic() < end, host.log.read_text()
                time.sleep(0.1)

    def _start(self, host: Host, *options: str) -> None:
        self._processes[host.name] = host.start(
            RAY,
            "start",
            "--block",
            "--disable-usage-stats",
            f"--node-ip-address={host.address}",
            "--object-store-memory=100000000",
            *options,
        )
