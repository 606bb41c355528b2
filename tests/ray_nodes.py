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
MARK = "BTS_TEST_NODE"
"""Names in the environment of a process the node on which it runs."""


@dataclass
class Node:
    """A raylet and all that it started."""

    process: "subprocess.Popen[str]"
    mark: str | None = None
    """Value of ``MARK`` of all that was started there, by which also that is found whose parent has ended."""

    @property
    def ray_id(self) -> str:
        """What Ray calls it."""
        for pid in _children(self.process.pid):
            found = re.search(rb"raylet\0.*--node-id=([0-9a-f]{56})", _read(pid, "cmdline"), re.DOTALL)
            if found:
                return found[1].decode()
        raise AssertionError("no raylet runs here")

    def workers(self) -> list[int]:
        """Pids of the Train workers that run here."""
        return [pid for pid in _children(self.process.pid) if b"RayTrainWorker" in _read(pid, "cmdline")]

    def pids(self) -> list[int]:
        """All that runs here."""
        marked = [] if self.mark is None else _marked(self.mark)
        return sorted({*_children(self.process.pid), *marked} - {self.process.pid})

    def commands(self) -> list[str]:
        """Command lines of all that runs here."""
        return [_read(pid, "cmdline").replace(b"\0", b" ").decode() for pid in self.pids()]

    def kill(self) -> None:
        """End all of the node at once, as when its power fails."""
        for pid in [self.process.pid, *self.pids()]:
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
        # In a folder of its own, as on another machine: a node that fetches a job's code puts it in the place of what
        # lies there, and a process that runs in the old folder starts no other.
        own = f"--temp-dir={self.folder}/{len(self.nodes)}"
        return self._start(f"--address={self.address}", "--num-cpus=1", own)

    def _start(self, *options: str) -> Node:
        path = self.folder.parent / f"node-{len(self.nodes)}.log"
        log = path.open("w")
        # Ray's default is one port for all, and the node that does not get it takes no jobs.
        agent = f"--dashboard-agent-listen-port={free_port()}"
        mark = secrets.token_hex(8)
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
            # Ray's workers give themselves titles, which would otherwise be written over their environment.
            env={**self.environment, MARK: mark, "SPT_NOENV": "1"},
            process_group=0,  # Ctrl-C is not for it
        )
        self.nodes.append(Node(process, mark))
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


def _marked(mark: str) -> list[int]:
    """All that were started with this mark, by whatever parent."""
    entry = f"{MARK}={mark}".encode()
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in pids if entry in _read(pid, "environ").split(b"\0")]


def _read(pid: int, name: str) -> bytes:
    """A file about a process; nothing of one that has ended or is another user's."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_bytes()
    return b""
