"""What ``bts doctor`` says of the nodes of a cluster that is joined: clocks, arithmetic, and how fast they exchange.

One process stands on each node, where a training's worker would.  Nothing waits for a node for ever: who does not
answer in time is named, and so is every pair of nodes that do not reach each other.
"""

import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bts_dist.exchange import MEETING_S, time_all_reduce
from bts_dist.interface import VARIABLE, use_interface
from cluster.doctor_machine import speeds
from cluster.finding import Finding
from cluster.placement import Placement, Room, fit_now
from shards.cpus import available_cpus

START_S = 90.0
"""How long a node may take to start a process.  Loading torch takes a minute on a cold disk, or where others keep the
CPUs: Ray's workers let them go first (niceness 15)."""
ANSWER_S = 30.0
"""How long that process may then take for an answer."""
REACH_S = 3.0
"""How long a node may take to let another one connect."""
EXCHANGE_S = 2.0
SKEW_S = 60.0

_LOOK = "look at `ray status` (a GPU in use is not to be had), at what else runs on those nodes, and at their logs"
_OPEN = (
    f"let the nodes reach each other on all ports, or name the interface of their network in {VARIABLE} (with GPUs, "
    "NCCL_SOCKET_IFNAME) before `ray start`"
)


class _Rank:
    """A process on a node."""

    def __init__(self, gpu: bool) -> None:
        self._gpu = gpu
        self._socket = socket.create_server(("", 0))

    def now(self) -> float:
        """Unix time in seconds."""
        return time.time()

    def speeds(self, precision: str | None) -> list[Finding]:
        torch.set_num_threads(available_cpus())
        return speeds(precision)

    def place(self) -> tuple[str, int, int]:
        """Address of the node, a port that listens there for `reach`, and a free one."""
        with socket.create_server(("", 0)) as free:
            return ray.util.get_node_ip_address(), self._socket.getsockname()[1], free.getsockname()[1]

    def reach(self, others: Mapping[str, tuple[str, int]]) -> list[str]:
        """Names of the others that this node cannot connect to."""
        return [name for name, place in others.items() if not reaches(place)]

    def exchange(self, meeting: str, rank: int, ranks: int, several_addresses: bool) -> float:
        """As ``time_all_reduce``, by the interface that a training would take."""
        torch.set_num_threads(1)
        if several_addresses:
            use_interface(ray.util.get_node_ip_address())
        device = torch.device("cuda", 0) if self._gpu else torch.device("cpu")
        return time_all_reduce(device, meeting, rank, ranks, EXCHANGE_S)


def reaches(place: tuple[str, int]) -> bool:
    """Whether a port somewhere takes a connection within ``REACH_S``."""
    try:
        socket.create_connection(place, REACH_S).close()
    except OSError:
        return False
    return True


def nodes(placement: Placement, alive: Sequence[Mapping[str, Any]], precision: str) -> list[Finding]:
    """What ``ray.nodes`` lists as alive; of a node without room for a worker only its clock counts.

    ``precision`` is that of a training there.
    """
    named = by_name(alive)
    able = {name for name, node in named.items() if fit_now(Room((node["Resources"],)), placement.worker) > 0}
    with _ranks({name: node["NodeID"] for name, node in named.items()}, able, placement) as ranks:
        up, silent = _answers({name: rank.now.remote() for name, rank in ranks.items()}, START_S)
        began = time.time()  # not before: a clock is judged by how soon it answers
        times, late = _answers({name: ranks[name].now.remote() for name in up}, ANSWER_S)
        found = [_clocks(times, silent | late, began, time.time())]
        workers = {name: rank for name, rank in ranks.items() if name in able and name in times}
        asked = {name: rank.speeds.remote(precision) for name, rank in workers.items()}
        told, mute = _answers(asked, ANSWER_S)
        for name, findings in told.items():
            found += [replace(each, check=f"{each.check}, node {name}") for each in findings]
        found += [Finding(f"arithmetic, node {name}", "error", why, _LOOK) for name, why in mute.items()]
        ready = {name: workers[name] for name in told}
        return [*found, _exchange(ready, of=len(able), gpu=placement.gpus >= 1)]


def by_name(alive: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Nodes by what people call them: the address, and the beginning of Ray's id where several share it."""
    shared = Counter(node["NodeManagerAddress"] for node in alive)
    return {
        address if shared[address] == 1 else f"{address} ({node['NodeID'][:8]})": node
        for node in alive
        for address in [str(node["NodeManagerAddress"])]
    }


@contextmanager
def _ranks(ids: Mapping[str, str], able: set[str], placement: Placement) -> Iterator[dict[str, Any]]:
    """A process on each node, by the nodes' names."""
    started = {
        name: ray.remote(_Rank)
        .options(
            # A cluster may be busy, and CPUs are shared well enough for a look; a GPU has to be had to be seen.
            num_cpus=0,
            num_gpus=placement.gpus if name in able else 0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        )
        .remote(placement.gpus >= 1)
        for name, node_id in ids.items()
    }
    try:
        yield started
    finally:
        for rank in started.values():
            ray.kill(rank)


def _answers(asked: Mapping[str, Any], within_s: float) -> tuple[dict[str, Any], dict[str, str]]:
    """What each node said, and why others said nothing."""
    told: dict[str, Any] = {}
    silent: dict[str, str] = {}
    ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=within_s) if asked else ([], [])
    for name, answer in asked.items():
        if answer not in ready:
            silent[name] = f"no answer within {within_s:g} s"
            continue
        try:
            told[name] = ray.get(answer)
        except RayError as error:
            silent[name] = str(error).strip().splitlines()[-1]
    return told, silent


def _clocks(times: Mapping[str, float], silent: Mapping[str, str], began: float, ended: float) -> Finding:
    """Every node's clock against this machine's, as exactly as an answer is quick."""
    if silent:
        return Finding("nodes' clocks", "warning", _listed(silent), _LOOK)
    # A clock is right if it is somewhere between question and answer.
    skew = {name: max(began - at, at - ended, 0.0) for name, at in times.items()}
    worst = max(skew, key=skew.__getitem__)
    found = f"{len(skew)} nodes differ from this machine's by {skew[worst]:.0f} s at most"
    if skew[worst] > SKEW_S:
        remedy = "set them by NTP (timedatectl set-ntp true)"
        return Finding("nodes' clocks", "warning", f"{found} (node {worst})", remedy)
    return Finding("nodes' clocks", "ok", found)


def _exchange(ranks: Mapping[str, Any], *, of: int, gpu: bool) -> Finding:
    """All-reduce with one rank a node; ``of`` is how many nodes have room for workers, also those that are silent."""
    check = "all-reduce, nodes"
    if of < 2:
        return Finding(check, "ok", "not measured: one node has room for all workers, or for none")
    if len(ranks) < 2:
        found = f"not measured: of {of} nodes with room for workers {len(ranks)} can be asked"
        return Finding(check, "warning", found, _LOOK)
    places, silent = _answers({name: rank.place.remote() for name, rank in ranks.items()}, ANSWER_S)
    if silent:
        return Finding(check, "error", _listed(silent), _LOOK)
    cut_off = _cut_off(ranks, {name: (address, door) for name, (address, door, _) in places.items()})
    if cut_off:
        return Finding(check, "error", _listed(cut_off), _OPEN)
    first, _, port = next(iter(places.values()))
    several = len({address for address, _, _ in places.values()}) > 1
    speed, failed = _answers(
        {
            name: rank.exchange.remote(f"tcp://{first}:{port}", number, len(ranks), several)
            for number, (name, rank) in enumerate(ranks.items())
        },
        MEETING_S + 10 * EXCHANGE_S,
    )
    if failed:
        return Finding(check, "error", _listed(failed), _OPEN)
    kind = "NCCL" if gpu else "gloo"
    found = f"{min(speed.values()) / 1e9:.2f} GB/s between {len(ranks)} nodes, one worker each, {kind}: "
    return Finding(check, "ok", found + ", ".join(ranks))


def _cut_off(ranks: Mapping[str, Any], doors: Mapping[str, tuple[str, int]]) -> dict[str, str]:
    """Nodes that cannot connect to others, and to which."""
    asked = {
        name: rank.reach.remote({other: door for other, door in doors.items() if other != name})
        for name, rank in ranks.items()
    }
    cut, silent = _answers(asked, ANSWER_S + REACH_S * len(ranks))
    return silent | {name: f"cannot connect to {', '.join(others)}" for name, others in cut.items() if others}


def _listed(why: Mapping[str, str]) -> str:
    return "; ".join(f"node {name}: {reason}" for name, reason in why.items())
