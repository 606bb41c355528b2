"""What a cluster says of itself: its nodes, what waits for room, and the jobs that run."""

from collections.abc import Sequence
from typing import Any

from ray.job_submission import JobDetails, JobStatus

from cluster.dashboard import Dashboard
from cluster.jobs import LOG_LINES, duration, progress

NODE_HEADINGS = ("node", "state", "CPU", "GPU", "memory", "labels")
JOB_HEADINGS = ("job", "stage", "run", "for", "progress")

_OWN_LABEL = "ray.io/node-id"
"""A label that repeats the node's id."""

Tree = dict[str, Any]


def node_rows(summary: Sequence[Tree], usage: Tree) -> list[tuple[str, ...]]:
    """A row for each node, the head first and lost nodes last, out of the dashboard's pages.

    ``summary`` is the list of ``/nodes?view=summary``, ``usage`` what ``used_by_node`` takes out of
    ``/api/cluster_status``: node id to resource to ``[used, total]``.
    """
    order = sorted(
        summary, key=lambda node: (_raylet(node, "state") != "ALIVE", not _raylet(node, "isHeadNode"))
    )
    return [NODE_HEADINGS, *(_node_row(node, usage) for node in order)]


def _node_row(node: Tree, usage: Tree) -> tuple[str, ...]:
    alive = _raylet(node, "state") == "ALIVE"
    address = _raylet(node, "nodeManagerAddress") or node.get("ip", "")
    name = f"{address} (head)" if _raylet(node, "isHeadNode") else address
    state = "alive" if alive else f"dead: {_raylet(node, 'stateMessage') or 'no reason given'}"
    own = usage.get(_raylet(node, "nodeId"), {})
    total = _raylet(node, "resourcesTotal") or {}
    counts = [_count(own.get(kind), total.get(kind, 0)) if alive else "" for kind in ("CPU", "GPU")]
    labels = {k: v for k, v in (_raylet(node, "labels") or {}).items() if k != _OWN_LABEL}
    return (
        name,
        state,
        *counts,
        _memory(node) if alive else "",
        " ".join(f"{k}={v}" for k, v in labels.items()),
    )


def _raylet(node: Tree, name: str) -> Any:
    return (node.get("raylet") or {}).get(name)


def _count(used: list[float] | None, total: float) -> str:
    """``used/total``, with a dash for what the cluster has not told yet."""
    if not total:
        return "0"
    return f"{used[0]:g}/{total:g}" if used else f"–/{total:g}"


def _memory(node: Tree) -> str:
    memory = node.get("mem")
    if not memory:
        return "–"
    total, available, *_ = memory
    return f"{(total - available) / 2**30:.1f}/{total / 2**30:.1f} GiB"


def used_by_node(status: Tree) -> Tree:
    return (_load(status).get("usageByNode")) or {}


def waiting(status: Tree) -> list[str]:
    """What has been asked of the cluster and found no room yet, and the nodes that are being started."""
    load = _load(status)
    lines = [f"{count} × {_resources(shape)}" for shape, count in load.get("resourceDemand") or ()]
    for group, count in load.get("pgDemand") or ():
        bundles = ", ".join(f"{n} × {_resources(shape)}" for shape, n in group["bundles"])
        lines.append(f"{count} × a group of {bundles} ({group['strategy'].lower()})")
    starting = ((status.get("clusterStatus") or {}).get("autoscalerReport") or {}).get("pendingNodes") or ()
    return [*lines, *(f"a node that starts: {' '.join(str(part) for part in node)}" for node in starting)]


def _load(status: Tree) -> Tree:
    """The autoscaler's report.  A cluster that has just been started has none."""
    return ((status.get("clusterStatus") or {}).get("loadMetricsReport")) or {}


def _resources(shape: dict[str, float]) -> str:
    return "{" + ", ".join(f"{name}: {amount:g}" for name, amount in shape.items()) + "}"


def job_rows(dashboard: Dashboard, jobs: Sequence[JobDetails], now_ms: float) -> list[tuple[str, ...]]:
    """A row for each job that has not ended."""
    rows: list[tuple[str, ...]] = [JOB_HEADINGS]
    for job in jobs:
        if job.status.is_terminal():
            continue
        metadata = job.metadata or {}
        if job.status == JobStatus.PENDING:
            far = "pending: its environment is being set up"
        else:
            far = progress(dashboard.log_end(job, LOG_LINES))
        took = duration((now_ms - (job.start_time or now_ms)) / 1000)
        rows.append((job.submission_id or "", metadata.get("stage", ""), metadata.get("run", ""), took, far))
    return rows
