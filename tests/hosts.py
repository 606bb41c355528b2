"""Several hosts on this machine, each with an address, a name, processes and files of its own, joined by a switch.

A host is a set of Linux namespaces, and nothing outside of it changes: the switch has a namespace too, and only its
cable to this machine, which is gone with it, is seen here.  The processes that hold the namespaces die with pytest, and
all that runs in a host dies with its first process.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path

NAMESPACES = ["--net", "--uts", "--ipc", "--pid", "--mount"]
BENCHMARK = IPv4Network("198.18.0.0/15")
"""Set aside for trials of networks (RFC 2544), so that no other network of this machine is likely to have it."""

_PROBE = """
ip link add name cable type veth peer name end
ip link add name bridge type bridge
mount -t tmpfs tmpfs /dev/shm
"""
_SWITCH = """
ip link add bridge type bridge
ip link set bridge up
"""
_HOST = """
hostname {name}
ip link set lo up
ip address add {address}/{prefix} dev eth0
ip link set eth0 up
mount --bind {files} {own}
mount --bind {files}/hosts /etc/hosts
mount -t tmpfs tmpfs /dev/shm
"""
# As Debian's installer writes it: the host's own name is an address that no other host can reach.
_NAMES = "127.0.0.1 localhost\n127.0.1.1 {name}\n"


def obstacle() -> str | None:
    """Why no hosts can be made here, or None; found by trying."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "hosts of their own are Linux namespaces, which root alone can make"
    for program in ("ip", "unshare", "nsenter"):
        if shutil.which(program) is None:
            return f"hosts of their own need the command {program} (Debian: iproute2, util-linux)"
    done = subprocess.run(_unshared(_PROBE), capture_output=True, text=True, check=False)
    return f"this machine permits no namespaces: {done.stderr.strip()}" if done.returncode else None


@dataclass
class Host:
    """One of the hosts; ``own`` is a folder that each sees as its own, below one name."""

    name: str
    address: str
    network: "Network"
    holder: "subprocess.Popen[bytes]"
    log: Path

    @property
    def own(self) -> Path:
        """What the host has in the network's folder ``own``, as seen from here."""
        return self.network.folder / self.name

    def command(self, *arguments: str | Path) -> list[str]:
        """The command line that runs ``arguments`` here."""
        return ["nsenter", f"--target={_first(self.holder)}", *NAMESPACES, *map(str, arguments)]

    def run(self, *arguments: str | Path) -> str:
        """Run a command, which must succeed, and give what it prints."""
        command, environment = self.command(*arguments), self.network.environment
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, *arguments: str | Path) -> "subprocess.Popen[bytes]":
        """Start a command, which ends with the host at the latest; its output is added to ``log``."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.command(*arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.network.environment,
                process_group=0,  # Ctrl-C is not for it
            )

    def cut_off(self) -> None:
        """Pull its cable: it lives on, and nobody hears of it."""
        self.network.at_switch("ip", "link", "set", self.name, "down")

    def kill(self) -> None:
        """End all of it at once."""
        self.holder.kill()
        self.holder.wait()


@dataclass
class Network:
    """Start with ``with``; leaving it ends all hosts.  ``environment`` is what their commands get."""

    folder: Path
    environment: Mapping[str, str]
    hosts: dict[str, Host] = field(default_factory=dict)
    _switch: "subprocess.Popen[bytes] | None" = None

    def __enter__(self) -> "Network":
        try:
            self._switch = _hold()
            _inside(self._switch, _SWITCH)
            self._connect(self._cable, os.getpid(), "outside")
            _ip("address", "add", f"{self.address}/{self.net.prefixlen}", "dev", self._cable)
            _ip("link", "set", self._cable, "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts.values():
            host.kill()
        if self._switch is not None:
            # Its end of the cable goes with it, but a moment later.
            subprocess.run(["ip", "link", "delete", self._cable], capture_output=True, check=False)
            self._switch.kill()
            self._switch.wait()

    @property
    def net(self) -> IPv4Network:
        """The addresses: another process's tests on this machine have others."""
        nets = list(BENCHMARK.subnets(new_prefix=28))
        return nets[os.getpid() % len(nets)]

    @property
    def _cable(self) -> str:
        """What this machine's end of its cable is called; names have at most 15 characters."""
        return f"bts{os.getpid()}"

    @property
    def address(self) -> str:
        """This machine's own, for what shall be reached from the hosts."""
        return str(self.net[1])

    @property
    def own(self) -> Path:
        """A folder that is another one in each host."""
        return self.folder / "own"

    def add(self, name: str) -> Host:
        """Make one more host."""
        own = self.folder / name
        own.mkdir(parents=True)
        self.own.mkdir(exist_ok=True)
        (own / "hosts").write_text(_NAMES.format(name=name))
        address = str(self.net[2 + len(self.hosts)])
        host = self.hosts[name] = Host(name, address, self, _hold(), own / "log.txt")
        self._connect("eth0", _first(host.holder), name)
        script = _HOST.format(name=name, address=address, prefix=self.net.prefixlen, files=own, own=self.own)
        _inside(host.holder, script)
        return host

    def at_switch(self, *arguments: str) -> None:
        assert self._switch is not None
        _inside(self._switch, " ".join(arguments))

    def _connect(self, device: str, pid: int, name: str) -> None:
        """A cable between the switch, where it is called ``name``, and the network of process ``pid``."""
        assert self._switch is not None
        _ip("link", "add", device, "netns", str(pid), "type", "veth",
            "peer", "name", name, "netns", str(_first(self._switch)))  # fmt: skip
        self.at_switch("ip", "link", "set", name, "master", "bridge", "up")


def _unshared(script: str) -> list[str]:
    return ["unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc", "sh", "-ec", script]


def _hold() -> "subprocess.Popen[bytes]":
    """New namespaces, and a process that holds them; it waits for those that lose their parent."""
    holder = subprocess.Popen(
        _unshared("sleep infinity & wait"),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_die_with_parent,
    )
    # Only the shell finds them ready: what is mounted before that would be mounted on this machine too.
    end = time.monotonic() + 30
    while not _is_shell(holder):
        assert holder.poll() is None, "unshare fails"
        assert time.monotonic() < end, "unshare starts nothing"
        time.sleep(0.01)
    return holder


def _is_shell(holder: "subprocess.Popen[bytes]") -> bool:
    """Whether the namespaces' first process runs its script."""
    children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text()
    return bool(children) and Path(f"/proc/{int(children)}/comm").read_text() == "sh\n"


def _first(holder: "subprocess.Popen[bytes]") -> int:
    """The namespaces' process 1, as seen from here."""
    return int(Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text())


def _inside(holder: "subprocess.Popen[bytes]", script: str) -> None:
    command = ["nsenter", f"--target={_first(holder)}", *NAMESPACES, "sh", "-ec", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{script}\n{done.stderr}"


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}\n{done.stderr}"


def _die_with_parent() -> None:
    """Have Linux kill this process when pytest is gone, even by kill -9."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
