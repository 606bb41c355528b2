"""The files that describe clusters, read as the tests look at them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ray.autoscaler._private.util import prepare_config

ROOT = Path(__file__).parents[1]
AWS = ROOT / "ray_cluster.yaml"
LOCAL = ROOT / "ray_cluster_local.yaml"
KUBERAY = ROOT / "cluster" / "kuberay"
JOBS = sorted((KUBERAY / "jobs").glob("*.yaml"))
MANIFESTS = sorted(KUBERAY.rglob("*.yaml"))
IMAGES = ROOT / "cluster" / "docker" / "Dockerfile"

PINNED = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line
)


@dataclass(frozen=True)
class RayStart:
    """How Ray is started on a machine: the options of ``ray start``, without dashes."""

    place: str
    head: bool
    options: dict[str, str]

    @property
    def words(self) -> list[str]:
        """The options as ``ray start`` is given them; to a pod, the operator tells what it is."""
        kind = {"head": ""} if self.head else {"address": "10.0.0.10:6379"}
        return [
            f"--{name}={value}" if value else f"--{name}" for name, value in (kind | self.options).items()
        ]


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def launcher(path: Path) -> dict[str, Any]:
    """A file for ``ray up``."""
    (content,) = documents(path)
    return content


def aws_node_types() -> dict[str, dict[str, Any]]:
    """The groups of machines on AWS, as Ray completes them."""
    types: dict[str, dict[str, Any]] = prepare_config(launcher(AWS))["available_node_types"]
    return types


def ray_clusters() -> list[tuple[str, dict[str, Any]]]:
    """Every cluster that the Kubernetes files ask for, each with the name of its file."""
    found = []
    for path in MANIFESTS:
        for content in documents(path):
            spec = content["spec"] if content["kind"] in ("RayCluster", "RayJob") else {}
            cluster = spec if content["kind"] == "RayCluster" else spec.get("rayClusterSpec")
            found += [(path.name, cluster)] if cluster else []
    return found


def ray_starts() -> list[RayStart]:
    """Every start of Ray in all of the files."""
    starts = []
    for path in (AWS, LOCAL):
        for key in ("head_start_ray_commands", "worker_start_ray_commands"):
            (command,) = (c for c in launcher(path)[key] if "ray start" in c)
            starts.append(RayStart(f"{path.name}: {key}", key.startswith("head"), options(command)))
    for name, cluster in ray_clusters():
        starts.append(RayStart(f"{name}: head", True, cluster["headGroupSpec"]["rayStartParams"]))
        starts += [
            RayStart(f"{name}: {group['groupName']}", False, group["rayStartParams"])
            for group in cluster["workerGroupSpecs"]
        ]
    return starts


def options(command: str) -> dict[str, str]:
    """The options of a shell command, e.g. ``{"port": "6379", "head": ""}``."""
    words = shlex.split(re.sub(r"\$\([^)]*\)", "COMMAND", command))
    pairs = (word.removeprefix("--").partition("=") for word in words if word.startswith("--"))
    return {name: value for name, _, value in pairs}


def port_table() -> list[list[str]]:
    """The rows of the table of ports in docs/operations.md, as lists of cells."""
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    section = page.partition("\n## Ports\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+) \|$", section, re.MULTILINE)
    return [row.split(" | ") for row in rows[1:]]
