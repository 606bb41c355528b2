"""What ``bts doctor`` says of the services around a run: Weights & Biases and the Ray cluster."""

import os
import stat
from dataclasses import replace
from pathlib import Path

import ray
from ray.exceptions import RayError

from bts_dist.config import Config
from bts_dist.wandb_login import LoginError, check_login, load_settings
from cluster import doctor_nodes
from cluster.auth_token import MODE, token_file
from cluster.finding import Finding, refused
from cluster.placement import Placement
from cluster.resources import check_resources, ray_cluster
from shards.errors import InputError


def wandb(config: Config) -> list[Finding]:
    """W&B's mode, whether its settings are valid and, online, whether its server answers and knows this user."""
    mode = config.track.wandb
    if mode == "disabled":
        return [Finding("W&B", "ok", "disabled: no record")]
    try:
        load_settings()
    except LoginError as error:
        found = refused("W&B", error)
        return [replace(found, remedy=f"{found.remedy}, or set track.wandb=disabled")]
    if mode == "offline":
        return [Finding("W&B", "ok", "offline: recorded beside the run, nothing leaves this machine")]
    try:
        login = check_login()
    except LoginError as error:
        found = refused("W&B", error)
        remedy = f"{found.remedy}, or set track.wandb=offline"
        return [replace(found, found=f"online, and {found.found}", remedy=remedy)]
    return [Finding("W&B", "ok", f"online: logged in to {login.server} as {login.user}")]


def cluster(config: Config) -> list[Finding]:
    """The Ray cluster at ``cluster.address``, and whether it has room for the workers."""
    asked = config.cluster
    if asked.runtime != "ray":
        return [Finding("Ray", "ok", f"not used: cluster.runtime={asked.runtime}")]
    # Before Ray is joined, which hides the token's file from others.
    token = _token(joins=asked.address is not None)
    if asked.address is None:
        return [
            token,
            Finding("Ray", "ok", f"{ray.__version__}; no cluster.address: one is started here when needed"),
        ]
    try:
        with ray_cluster(asked):
            return [token, *_joined(config)]
    except (InputError, RayError) as error:
        return [token, refused("Ray", error)]


def _joined(config: Config) -> list[Finding]:
    """What this process's cluster has, and how its nodes do.

    Raises:
        InputError: it can never hold the workers.
    """
    asked = config.cluster
    placement, alive = check_resources(asked), [n for n in ray.nodes() if n["Alive"]]
    worker = " and ".join(f"{each:g} {name}" for name, each in placement.worker.items())
    found = (
        f"{ray.__version__} at {asked.address}: {len(alive)} nodes, room for {placement.now} workers "
        f"with {worker} each"
    )
    return [
        Finding("Ray", "ok", found),
        *noted(placement, asked.fewest),
        *doctor_nodes.nodes(placement, alive, config.train.precision),
    ]


def noted(placement: Placement, fewest: int) -> list[Finding]:
    """What the user should know of where ``fewest`` workers or more find room."""
    notes = [
        Finding("Ray", "warning", note, "change what is asked for, or go on") for note in placement.notes
    ]
    if placement.now < fewest:  # the last note says so
        remedy = "a run has them started; this look starts none, and nothing is to be waited for"
        notes[-1] = replace(notes[-1], remedy=remedy)
    return notes


def _token(*, joins: bool) -> Finding:
    """Ray's secret, which lets anybody who reads it run code on the cluster; ``joins`` one that others started."""
    mode = os.environ.get(MODE, "token")
    if mode != "token":
        return Finding(
            "Ray token", "warning", f"{MODE}={mode}: whoever reaches the head may run code", f"unset {MODE}"
        )
    if os.environ.get("RAY_AUTH_TOKEN"):
        return Finding("Ray token", "ok", "from RAY_AUTH_TOKEN")
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named).expanduser() if named else token_file()
    if not path.is_file():
        if joins or named:
            remedy = (
                f"put the one that `ray get-auth-token` prints on the cluster's head into {path} (mode 0600)"
            )
            return Finding("Ray token", "warning", f"none: {path} is not there", remedy)
        return Finding(
            "Ray token", "ok", f"none yet: {path} is made with the first cluster that is started here"
        )
    mode_bits = stat.S_IMODE(path.stat().st_mode)
    if mode_bits & 0o077:
        return Finding(
            "Ray token", "warning", f"others may read {path} ({mode_bits:04o})", f"chmod 600 {path}"
        )
    return Finding("Ray token", "ok", f"{path}, readable by its owner alone")
