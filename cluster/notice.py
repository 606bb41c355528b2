"""A machine that will be taken away says so to Ray, so that training saves in time.

Ray 2.60 does not ask a cloud or Kubernetes for such notices.  One of these runs beside it on a worker:

- ``python -m cluster.notice spot``: asks AWS every five seconds whether it takes the machine back, and ends with Ray.
- ``python -m cluster.notice leave SECONDS``: tells Ray that the machine goes in so many seconds, and returns when no
  training is left on it; what Kubernetes runs before it ends a pod.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from cluster.explanation import explain
from shards.errors import InputError

METADATA = "http://169.254.169.254"
"""Where AWS tells a machine about itself."""
LOOK_S = 5.0
"""Seconds between two looks; AWS advises five."""
MARGIN_S = 10
"""Seconds before the machine goes at which the last save must be done."""
TELL_S = 20.0
"""Seconds that Ray has to accept a notice; its command alone takes two to start."""

Notify = Callable[[str, int], None]


def raylet_id(processes: Path = Path("/proc")) -> str | None:
    """Ray's id of this machine, in hex; None where no raylet runs."""
    for command in _commands(processes):
        found = re.search(rb"raylet\0.*--node-id=([0-9a-f]{56})", command, re.DOTALL)
        if found:
            return found[1].decode()
    return None


def trains(processes: Path = Path("/proc")) -> bool:
    """Whether a worker of Ray Train runs here."""
    return any(b"RayTrainWorker" in command for command in _commands(processes))


def spot_seconds(endpoint: str = METADATA, now: Callable[[], float] = time.time) -> float | None:
    """Seconds until AWS takes the machine back; None while it does not say so.

    Source: "Spot Instance interruption notices" in AWS's EC2 user guide; the session token is that of IMDSv2.

    Raises:
        OSError: the metadata service does not answer, or with an error.
        HTTPException: it broke off.
        ValueError: it answered something else.
    """
    ask = Request(
        f"{endpoint}/latest/api/token", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"}, method="PUT"
    )
    with urlopen(ask, timeout=2) as reply:
        token = reply.read().decode()
    look = Request(
        f"{endpoint}/latest/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": token}
    )
    try:
        with urlopen(look, timeout=2) as reply:
            action = json.load(reply)
    except HTTPError as error:
        if error.code == 404:  # nothing is planned
            return None
        raise
    try:
        end = datetime.strptime(action["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except (KeyError, TypeError) as error:
        raise ValueError(f"no time is in the notice {action!r}") from error
    return end.timestamp() - now()


def drain(node: str, seconds: int) -> None:
    """Tell Ray that a node goes in so many seconds, which it has to accept before they are over.

    Raises:
        subprocess.SubprocessError: Ray does not accept it, or does not answer in time.
        OSError: its command is not there.
    """
    ray = Path(sys.executable).with_name("ray")
    notice = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=the machine is taken away"]
    command = [str(ray), "drain-node", f"--node-id={node}", f"--deadline-remaining-seconds={seconds}"]
    subprocess.run([*command, *notice], check=True, timeout=min(TELL_S, max(1, seconds)))


def watch_spot(
    node: Callable[[], str | None] = raylet_id,
    left: Callable[[], float | None] = spot_seconds,
    notify: Notify = drain,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Look until AWS takes the machine back and Ray has been told; return also when Ray has ended here."""
    while (name := node()) is not None:
        seconds = None
        # It fails seldom, and is asked again: a watcher that ended would say nothing when it counts.
        try:
            seconds = left()
        except (OSError, HTTPException, ValueError) as error:
            print(f"the metadata service failed and is asked again: {error!r}", flush=True)
        if seconds is not None:
            print(f"AWS takes this machine back in {seconds:.0f} s", flush=True)
            if _told(notify, name, max(0, int(seconds) - MARGIN_S)):
                return
        sleep(LOOK_S)


def _told(notify: Notify, name: str, seconds: int) -> bool:
    """Whether Ray has taken the notice; if not, say why."""
    try:
        notify(name, seconds)
    except (subprocess.SubprocessError, OSError) as error:
        print(f"Ray did not take the notice and is told again: {error}", flush=True)
        return False
    return True


def leave(
    seconds: int,
    node: Callable[[], str | None] = raylet_id,
    busy: Callable[[], bool] = trains,
    notify: Notify = drain,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> None:
    """Tell Ray that this machine goes, and wait for as long as it trains, ``seconds`` at most."""
    end, name = now() + seconds, node()
    if name is None or not busy():
        return
    told = False
    while (left := end - now()) > 0:
        told = told or _told(notify, name, int(left))
        if not busy():
            return
        sleep(1)


def main(arguments: list[str]) -> None:
    """Raises ``InputError`` for other arguments than the two above."""
    match arguments:
        case ["spot"]:
            watch_spot()
        case ["leave", seconds] if seconds.isdecimal():
            leave(int(seconds))
        case _:
            raise InputError(f"cluster.notice takes `spot` or `leave SECONDS`; found {' '.join(arguments)!r}")


def _commands(processes: Path) -> Iterator[bytes]:
    """The command line of every process, its words ended by zero bytes."""
    for file in processes.glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            yield file.read_bytes()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as bad:
        sys.exit(explain(bad, 2))
