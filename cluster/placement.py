"""Whether a cluster has room for the workers that are asked for, or can ever have it; figures alone, no Ray.

Ray itself waits without end for what no node can give.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from bts_dist.config import ClusterConfig
from shards.errors import InputError

Resources = Mapping[str, float]
"""CPUs and GPUs by Ray's names, ``CPU`` and ``GPU``; what is not named is not there."""

_ROUNDING = 1e-9
"""Ray counts in ten-thousandths: three workers of a third of a GPU fit on one."""


@dataclass(frozen=True)
class NodeType:
    """Nodes that an autoscaler can start."""

    resources: Resources
    most: float
    """How many there may be at a time; infinite without a limit."""


@dataclass(frozen=True)
class Room:
    """The nodes of a cluster, and those that may come."""

    nodes: tuple[Resources, ...]
    """Those that live now."""
    autoscaling: bool = False
    types: tuple[NodeType, ...] | None = ()
    """What the autoscaler can start; None where it does not tell."""
    most_nodes: float = math.inf
    """How many nodes there may be of all types together."""


@dataclass(frozen=True)
class Placement:
    """What each worker gets, and how many find room."""

    worker: Resources
    now: int
    """Workers for which the living nodes have room, were nothing else there."""
    ever: float
    """The same of the cluster at its largest; infinite where nobody knows."""
    notes: tuple[str, ...] = ()
    """What the user should know of it."""

    @property
    def gpus(self) -> float:
        return self.worker.get("GPU", 0.0)


def place(config: ClusterConfig, room: Room, cuda: bool) -> Placement:
    """What each worker gets on this cluster; ``cuda`` tells whether torch is built for GPUs.

    Raises:
        InputError: no node, living or yet to come, can hold a worker, or all together cannot hold
            ``config.fewest`` of them; or GPUs are asked of a torch that cannot use them.
    """
    gpus, notes = _gpus(config, room, cuda)
    worker = {"CPU": config.cpus_per_worker, **({"GPU": gpus} if gpus else {})}
    now, ever = fit_now(room, worker), fit_ever(room, worker)
    if ever < config.fewest:
        raise InputError(_refusal(config, room, worker, ever))
    if now < config.fewest:
        notes.append(
            f"the living nodes have room for {now} of {config.fewest} workers with {_told(worker)} each; waiting up to "
            f"cluster.wait_minutes={config.wait_minutes:g} for the autoscaler to start more"
        )
    return Placement(worker, now, ever, tuple(notes))


def fit_now(room: Room, worker: Resources) -> int:
    """How many workers the living nodes can hold."""
    return sum(_fit(node, worker) for node in room.nodes)


def fit_ever(room: Room, worker: Resources) -> float:
    """How many workers the cluster can hold at its largest; infinite where nobody knows.

    An upper bound: nodes that live are counted as if they could all give way to a better type.
    """
    now = fit_now(room, worker)
    if not room.autoscaling:
        return now
    if room.types is None:
        return math.inf
    ever, left = 0.0, room.most_nodes
    for each, most in sorted(((_fit(t.resources, worker), t.most) for t in room.types), reverse=True):
        if each and min(most, left):
            ever += each * min(most, left)
            left -= min(most, left)
    return max(now, ever)


def fit_side_by_side(placement: Placement, fewest: int, count: int, asked: int | None = None) -> int:
    """How many of ``count`` trainings run at a time, with ``fewest`` workers each; at least one.

    Nodes that an autoscaler may start count: it starts them for what waits.  Where it does not tell how many, only
    ``asked`` goes beyond the living nodes: what finds no room in ``cluster.wait_minutes`` fails.
    """
    known = placement.ever if math.isfinite(placement.ever) or asked is not None else placement.now
    return int(max(1, min(known / fewest, count, count if asked is None else asked)))


def fit_without_gpus(room: Room, task: Resources) -> float:
    """How many tasks may be with the cluster, lest its autoscaler start nodes with GPUs for those that wait.

    Infinite where it starts no nodes.  Where it does not tell what it starts, no more than find room now.
    """
    if not room.autoscaling:
        return math.inf
    plain = tuple(kind for kind in room.types or () if not kind.resources.get("GPU"))
    return fit_ever(replace(room, types=plain), task)


def _gpus(config: ClusterConfig, room: Room, cuda: bool) -> tuple[float, list[str]]:
    """GPUs of a worker, as asked for or as the cluster has them."""
    asked = config.gpus_per_worker
    if asked and not cuda:
        raise InputError(
            f"cluster.gpus_per_worker={asked:g}, and torch is built without CUDA here; install a CUDA build of torch "
            "on every machine, or set cluster.gpus_per_worker=0"
        )
    if asked is not None:
        return asked, []
    kinds = [*room.nodes, *(kind.resources for kind in room.types or () if kind.most > 0)]
    if not any(kind.get("GPU", 0) > 0 for kind in kinds):
        return 0.0, []
    if not cuda:
        return 0.0, ["training on CPUs: the cluster has GPUs, and torch is built without CUDA here"]
    fit = fit_ever(room, {"CPU": config.cpus_per_worker, "GPU": 1})
    if fit >= config.fewest:
        return 1.0, []
    return 0.0, [
        f"training on CPUs: with a GPU each, {fit:g} of {config.fewest} workers find room; lower cluster.workers to "
        "use GPUs, or set cluster.gpus_per_worker below 1 to share them"
    ]


def _fit(node: Resources, worker: Resources) -> int:
    return min(_share(name, node.get(name, 0), each) for name, each in worker.items())


def _share(name: str, have: float, each: float) -> int:
    """How many times ``each`` of a resource is in what a node has of it; a part of a GPU is of one GPU."""
    if name == "GPU" and each < 1:
        return int(have) * int(1 / each + _ROUNDING)
    return int(have / each + _ROUNDING)


def _refusal(config: ClusterConfig, room: Room, worker: Resources, ever: float) -> str:
    """What is asked, what there is, and which key to lower."""
    kinds = [*room.nodes, *(kind.resources for kind in room.types or ())]
    keys = " or ".join(f"cluster.{name.lower()}s_per_worker" for name in worker)
    largest = ", ".join(
        f"{max((kind.get(name, 0) for kind in kinds), default=0):g} {name}" for name in worker
    )
    if room.autoscaling:
        return (
            f"{config.fewest} workers with {_told(worker)} each can never run here: with every node that "
            f"its autoscaler may start, the cluster has room for {ever:g}, and the most a node has is {largest}; lower "
            f"cluster.workers or {keys}, or allow more or larger nodes (max_workers, available_node_types)"
        )
    for name, each in worker.items():
        have, want = sum(node.get(name, 0) for node in room.nodes), each * config.fewest
        if want > have + _ROUNDING:
            return (
                f"{config.fewest} workers with {_told(worker)} each need {want:g} {name}, the cluster has {have:g}; "
                f"lower cluster.workers or cluster.{name.lower()}s_per_worker, or add nodes"
            )
    return (
        f"{config.fewest} workers with {_told(worker)} each do not fit: the cluster's {len(room.nodes)} nodes have "
        f"room for {ever:g}, and the most a node has is {largest}; lower {keys}, or add larger nodes"
    )


def _told(worker: Resources) -> str:
    return " and ".join(f"{each:g} {name}" for name, each in worker.items())
