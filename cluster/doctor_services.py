"""What ``bts doctor`` says of the services around a run: Weights & Biases and the Ray cluster."""

import base64
import json
import netrc
import os
import stat
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bts_dist.config import Config
from cluster.finding import Finding, refused
from cluster.resources import check_resources, ray_cluster
from shards.errors import InputError

TIMEOUT_S = 5.0
NODES_TIMEOUT_S = 30.0
"""How long nodes may take to start a worker that tells the time."""
SKEW_S = 60.0

TOKEN = Path("~/.ray/auth_token")


def wandb(config: Config) -> list[Finding]:
    """W&B's mode and, online, whether its server answers and knows this user."""
    mode = config.track.wandb
    if mode != "online":
        what = {"offline": "recorded beside the run, nothing leaves this machine", "disabled": "no record"}[
            mode
        ]
        return [Finding("W&B", "ok", f"{mode}: {what}")]
    import wandb as package

    server = str(package.setup().settings.base_url)
    key = os.environ.get("WANDB_API_KEY") or _netrc_key(urlsplit(server).hostname or "")
    if not key:
        return [
            Finding(
                "W&B",
                "error",
                f"online, and not logged in to {server}",
                "wandb login, or track.wandb=offline",
            )
        ]
    try:
        user = _viewer(server, key)
    except (OSError, ValueError) as error:
        remedy = "see that this machine may reach it (WANDB_BASE_URL, a proxy), or set track.wandb=offline"
        return [Finding("W&B", "error", f"online, and {server} does not answer: {error}", remedy)]
    if user is None:
        return [
            Finding("W&B", "error", f"online, and {server} does not know the key", "wandb login --relogin")
        ]
    return [Finding("W&B", "ok", f"online: logged in to {server} as {user}")]


def _netrc_key(host: str) -> str | None:
    """The key that ``wandb login`` keeps."""
    try:
        found = netrc.netrc(os.environ.get("NETRC")).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return None
    return found[2] if found else None


def _viewer(server: str, key: str) -> str | None:
    """Who the server says this is; None for nobody.

    Raises:
        OSError: no answer in time, or an error.
        ValueError: the answer is none of W&B's.
    """
    query = json.dumps({"query": "query Viewer { viewer { username } }"}).encode()
    secret = base64.b64encode(f"api:{key}".encode()).decode()
    headers = {"Authorization": f"Basic {secret}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.rstrip('/')}/graphql", query, headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
            answer = json.load(reply)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return None
        raise
    if not isinstance(answer, dict) or "viewer" not in (answer.get("data") or {}):
        raise ValueError("its answer has no viewer")
    viewer = answer["data"]["viewer"]
    return str(viewer["username"]) if viewer else None


def cluster(config: Config) -> list[Finding]:
    """The Ray cluster at ``cluster.address``, and whether it has room for the workers."""
    asked = config.cluster
    if asked.runtime != "ray":
        return [Finding("Ray", "ok", f"not used: cluster.runtime={asked.runtime}")]
    if asked.address is None:
        return [
            *_token(),
            Finding("Ray", "ok", f"{ray.__version__}; no cluster.address: one is started here when needed"),
        ]
    try:
        with ray_cluster(asked):
            placement, alive = check_resources(asked), [n for n in ray.nodes() if n["Alive"]]
            worker = " and ".join(f"{each:g} {name}" for name, each in placement.worker.items())
            found = (
                f"{ray.__version__} at {asked.address}: {len(alive)} nodes, room for {placement.now} workers "
                f"with {worker} each"
            )
            notes = [
                Finding("Ray", "warning", note, "wait, or change what is asked for")
                for note in placement.notes
            ]
            return [
                *_token(),
                Finding("Ray", "ok", found),
                *notes,
                _clocks([node["NodeID"] for node in alive]),
            ]
    except (InputError, RayError) as error:
        return [*_token(), refused("Ray", error)]


def _token() -> list[Finding]:
    """Ray's secret, which lets anybody who reads it run code on the cluster."""
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    path = TOKEN.expanduser()
    if mode != "token":
        return [
            Finding(
                "Ray token",
                "warning",
                f"RAY_AUTH_MODE={mode}: whoever reaches the head may run code",
                "unset it",
            )
        ]
    if os.environ.get("RAY_AUTH_TOKEN"):
        return [Finding("Ray token", "ok", "from RAY_AUTH_TOKEN")]
    if os.environ.get("RAY_AUTH_TOKEN_PATH"):
        path = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).expanduser()
    if not path.is_file():
        return [
            Finding(
                "Ray token", "ok", f"none yet: {path} is made with the first cluster that is started here"
            )
        ]
    mode_bits = stat.S_IMODE(path.stat().st_mode)
    if mode_bits & 0o077:
        return [
            Finding("Ray token", "warning", f"others may read {path} ({mode_bits:04o})", f"chmod 600 {path}")
        ]
    return [Finding("Ray token", "ok", f"{path}, readable by its owner alone")]


def _now() -> float:
    """Unix time in seconds, on whichever node this runs."""
    return time.time()


def _clocks(nodes: list[str]) -> Finding:
    """Every node's clock against this machine's, as exactly as an answer is quick."""
    tell = ray.remote(num_cpus=0, max_retries=0)(_now)
    began = time.time()
    asked = [
        tell.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote()
        for node in nodes
    ]
    told, silent = ray.wait(asked, num_returns=len(asked), timeout=NODES_TIMEOUT_S)
    if silent:
        remedy = "look at `ray status` and the logs of those nodes"
        return Finding(
            "nodes' clocks", "warning", f"{len(silent)} of {len(nodes)} nodes do not answer", remedy
        )
    ended = time.time()
    # A clock is right if it is somewhere between question and answer.
    skew = max(max(began - at, at - ended, 0.0) for at in ray.get(told))
    found = f"{len(nodes)} nodes differ from this machine's by {skew:.0f} s at most"
    if skew > SKEW_S:
        return Finding("nodes' clocks", "warning", found, "set them by NTP (timedatectl set-ntp true)")
    return Finding("nodes' clocks", "ok", found)
