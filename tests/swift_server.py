"""A real S3 server for tests: OpenStack Swift, one process a role, its data in a temporary folder.

Swift comes from PyPI alone (pyeclib's wheel brings liberasurecode), for Linux.  Its ``s3api``
filter speaks S3: signatures, ranges, multipart uploads and checksums are verified as in production.
"""

import ctypes
import fcntl
import getpass
import http.client
import os
import shutil
import signal
import socket
import subprocess
import time
import venv
from dataclasses import dataclass, field
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("swift-requirements.txt")
LOOPBACK = "127.0.0.1"
ACCESS_KEY, SECRET_KEY = "test:tester", "testing"

SWIFT_CONF = """\
[swift-hash]
swift_hash_path_prefix = bts
swift_hash_path_suffix = dist
[storage-policy:0]
name = one-copy
default = yes
"""

COMMON = """\
[DEFAULT]
bind_ip = {address}
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
disable_fallocate = true
log_level = WARNING
"""

STORAGE_CONF = (
    COMMON
    + """\
[pipeline:main]
pipeline = {role}-server
[app:{role}-server]
use = egg:swift#{role}
disk_chunk_size = 1048576
network_chunk_size = 1048576
"""
)

PROXY_CONF = (
    COMMON
    + """\
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck listing_formats s3api tempauth copy slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
object_chunk_size = 1048576
client_chunk_size = 1048576
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_{account}_{name} = {secret} .admin
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
"""
)

BUILD_RINGS = """\
import sys
from swift.common.ring import RingBuilder
folder, *roles = sys.argv[1:]
for role, port in (item.split("=") for item in roles):
    ring = RingBuilder(4, 1, 0)
    ring.add_dev(dict(region=1, zone=1, ip="127.0.0.1", port=int(port), device="disk", weight=1))
    ring.rebalance()
    ring.get_ring().save(f"{folder}/{role}.ring.gz")
"""


def install(folder: Path) -> Path:
    """The ``bin`` of a virtual environment with Swift, made at the first call and kept for later runs."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "swift-venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        home = folder / "swift-venv"
        installed = home / "installed.txt"
        wanted = REQUIREMENTS.read_text()
        if not installed.exists() or installed.read_text() != wanted:
            venv.create(home, clear=True, with_pip=True)
            command = [home / "bin" / "pip", "install", "--quiet", "--requirement", REQUIREMENTS]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(
                    f"pip cannot install the S3 server of the tests into {home}; have PyPI reachable, or set "
                    f"BTS_TEST_S3_ENDPOINT and the AWS variables to a server of yours\n{done.stderr}"
                )
            installed.write_text(wanted)
        return home / "bin"


@dataclass
class SwiftServer:
    """Start with ``with``; leaving it stops the processes and removes the data.

    It serves at ``address``, one of this machine's, and its parts speak to each other on the loopback.
    """

    bin: Path
    folder: Path
    address: str = LOOPBACK
    endpoint: str = ""
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __enter__(self) -> "SwiftServer":
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to use it, and nothing else."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def _start(self) -> None:
        (self.folder / "devices" / "disk").mkdir(parents=True)
        os.setxattr(self.folder, "user.bts", b"Swift keeps metadata so; elsewhere try pytest --basetemp")
        ports = _free_ports(
            {role: self._address(role) for role in ("account", "container", "object", "proxy")}
        )
        self._configure(ports)
        for role in ports:
            self._launch(role)
        for role, port in ports.items():
            self._wait_for(role, port)
        self.endpoint = f"http://{self.address}:{ports['proxy']}"

    def _address(self, role: str) -> str:
        return self.address if role == "proxy" else LOOPBACK

    def _configure(self, ports: dict[str, int]) -> None:
        account, name = ACCESS_KEY.split(":")
        (self.folder / "swift.conf").write_text(SWIFT_CONF)
        for role, port in ports.items():
            template = PROXY_CONF if role == "proxy" else STORAGE_CONF
            text = template.format(
                role=role,
                address=self._address(role),
                port=port,
                user=getpass.getuser(),
                folder=self.folder,
                account=account,
                name=name,
                secret=SECRET_KEY,
            )
            (self.folder / f"{role}.conf").write_text(text)
        rings = [f"{role}={port}" for role, port in ports.items() if role != "proxy"]
        subprocess.run([self.bin / "python", "-c", BUILD_RINGS, self.folder, *rings], check=True)

    def _launch(self, role: str) -> None:
        with (self.folder / f"{role}.log").open("wb") as log:
            process = subprocess.Popen(
                [self.bin / f"swift-{role}-server", self.folder / f"{role}.conf"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for pytest, which then stops the server
                preexec_fn=_die_with_parent,
            )
        self._processes.append(process)

    def _wait_for(self, role: str, port: int) -> None:
        deadline = time.monotonic() + 60
        while not _answers(self._address(role), port):
            if time.monotonic() > deadline or any(process.poll() is not None for process in self._processes):
                log = (self.folder / f"{role}.log").read_text(errors="replace")
                raise RuntimeError(f"Swift's {role} server does not start:\n{log[-4000:]}")
            time.sleep(0.05)


def _free_ports(addresses: dict[str, str]) -> dict[str, int]:
    sockets = {role: socket.create_server((address, 0)) for role, address in addresses.items()}
    ports = {role: opened.getsockname()[1] for role, opened in sockets.items()}
    for opened in sockets.values():
        opened.close()
    return ports


def _answers(address: str, port: int) -> bool:
    connection = http.client.HTTPConnection(address, port, timeout=5)
    try:
        connection.request("GET", "/healthcheck")
        return connection.getresponse().status > 0
    except OSError:
        return False
    finally:
        connection.close()


def _die_with_parent() -> None:
    """Have Linux kill this process when pytest is gone, even by kill -9."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
