"""A Ray cluster of several nodes on this machine, each a process group of its own that tests may freeze or kill."""

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

RAY = str(Path(sys.executable).with_name("ray"))


@dataclass
class Node:
    """A raylet and all that it started."""

    process: "subprocess.Popen[str]"

    @property
    def ray_id(self) -> str:
        """What Ray calls it."""
        for pid in _children(self.process.pid):
            found = re.search(rb"raylet\0.*--node-id=([0-9a-f]{56})", _command(pid), re.DOTALL)
            if found:
                return found[1].decode()
        raise AssertionError("no raylet runs here")

    def workers(self) -> list[int]:
        """Pids of the Train workers that run here."""
        return [pid for pid in _children(self.process.pid) if b"RayTrainWorker" in _command(pid)]

    def pids(self) -> list[int]:
        """All that runs here."""
        return _children(self.process.pid)

    def commands(self) -> list[str]:
        """Command lines of all that runs here."""
        return [_command(pid).replace(b"\0", b" ").decode() for pid in _children(self.process.pid)]

    def kill(self) -> None:
        """End all of the node at once, as when its power fails."""
        pids = [self.process.pid, *_children(self.process.pid)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class Nodes:
    """A head without CPUs, and nodes with one each."""

    port: int
    folder: Path
    nodes: list[Node] = field(default_factory=list)
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    dashboard_port: int = field(default_factory=lambda: free_port())

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to speak to this cluster, and nodes to each other."""
        return {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def dashboard(self) -> str:
        """Where jobs are sent."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    def start_head(self) -> None:
        self._start(
            "--head",
            f"--port={self.port}",
            f"--temp-dir={self.folder}",
            "--num-cpus=0",
            f"--dashboard-port={self.dashboard_port}",
            "--include-dashboard=true",
        )

    def add(self) -> Node:
        return self._start(f"--address={self.address}", "--num-cpus=1")

    def _start(self, *options: str) -> Node:
        path = self.folder.parent / f"node-{len(self.nodes)}.log"
        log = path.open("w")
        # Ray's default is one port for all, and the node that does not get it takes no jobs.
        agent = f"--dashboard-agent-listen-port={free_port()}"
        process = subprocess.Popen(
            [
                RAY,
                "start",
                "--block",
                "--disable-usage-stats",
                "--object-store-memory=100000000",
                agent,
                *options,
            ],
            stdout=log,
            stderr=log,
            text=True,
            env=self.environment,
            process_group=0,  # Ctrl-C is not for it
        )
        self.nodes.append(Node(process))
        end = time.monotonic() + 60
        # One after another: two that start at a time choose the same ports.
        while "Ray runtime started" not in path.read_text():
            assert process.poll() is None, path.read_text()
            assert time.monotonic() < end, path.read_text()
            time.sleep(0.1)
        return self.nodes[-1]

    def stop(self) -> None:
        for node in reversed(self.nodes):
            if node.process.poll() is None:
                node.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _children(pid: int) -> list[int]:
    """All that descend from a process."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                parents.setdefault(int(stat[1]), []).append(int(entry.name))
    found, open_ = [], [pid]
    while open_:
        below = parents.get(open_.pop(), [])
        found += below
        open_ += below
    return found


def _command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
