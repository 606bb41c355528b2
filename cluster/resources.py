"""The Ray cluster a command runs on: joined or started, checked, and left as it was found."""

import logging
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import torch
from ray.exceptions import AuthenticationError, RayError

from bts_dist import commit
from bts_dist.config import ClusterConfig
from cluster import console
from cluster.auth_token import ensure_token, hide_token, refusal
from cluster.head_port import check_head
from cluster.nodes import read_room
from cluster.placement import Placement, fit_side_by_side, place
from cluster.termination import termination_heeded
from shards.cpus import available_cpus
from shards.errors import InputError

NICENESS = "RAY_worker_niceness"
"""The variable by which a Ray node that starts chooses the priority of its workers."""


@contextmanager
def ray_cluster(config: ClusterConfig) -> Iterator[None]:
    """Join ``config.address``, or start Ray on this machine and stop it at the end.

    Inside an existing connection it does nothing, so that stages share one cluster.

    Raises:
        InputError: no cluster answers at the address, or it can never hold the workers asked for.
    """
    if ray.is_initialized():
        check_resources(config)
        yield
        return
    with termination_heeded():
        _connect(config)
    try:
        check_resources(config)
        yield
    finally:
        ray.shutdown()


def check_resources(config: ClusterConfig) -> Placement:
    """What each worker gets; refused at once is what Ray would wait for without end.

    A cluster of groups may grow, and the start then waits for ``cluster.wait_minutes``.

    Raises:
        InputError: the cluster cannot hold the workers, now or ever, as ``placement.place`` says.
    """
    # On a cluster that is joined, workers have a torch of their own, and say when it cannot use their GPU.
    cuda = torch.version.cuda is not None or config.address is not None
    return place(config, read_room(), cuda=cuda)


def decided(config: ClusterConfig) -> ClusterConfig:
    """The same with ``gpus_per_worker`` as it is on this cluster, for processes elsewhere to follow.

    Raises as ``check_resources``.
    """
    return config.model_copy(update={"gpus_per_worker": check_resources(config).gpus})


def max_concurrent(config: ClusterConfig, count: int, asked: int | None = None) -> int:
    """How many of ``count`` trainings run side by side here, as ``placement.fit_side_by_side`` has it."""
    return fit_side_by_side(check_resources(config), config.fewest, count, asked)


def _connect(config: ClusterConfig) -> None:
    # Ray's own progress and warnings would drown ours; worker errors reach us as exceptions.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", "600")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    hide_token()
    if config.address is None:
        _start(config, options)
    else:
        _join(config.address, options)


def _start(config: ClusterConfig, options: dict[str, Any]) -> None:
    if elsewhere := os.environ.get("RAY_ADDRESS"):
        console.out.print(
            f"  RAY_ADDRESS={elsewhere} is left alone: cluster.address is null, so Ray starts on this machine; "
            "--set cluster.address=auto joins that cluster",
            markup=False,
        )
    ensure_token()
    # Ray's own 15 lets all others on the machine go first: workers would hardly run, and could be taken for frozen.
    os.environ.setdefault(NICENESS, "0")
    cpus = max(available_cpus(), math.ceil(config.most * config.cpus_per_worker))
    port = _free_port()
    # Left out, Ray would join what RAY_ADDRESS names, or a cluster that somebody started on this machine.
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=True,
        dashboard_port=port,
        runtime_env=_environment(f"127.0.0.1:{port}"),
        **options,
    )


def _join(address: str, options: dict[str, Any]) -> None:
    try:
        check_head(address)
        ray.init(address=address, **options)
        environment = _environment(ray._private.worker.get_dashboard_url())
        ray.shutdown()
        ray.init(address=address, runtime_env=environment, **options)
    except AuthenticationError as error:
        raise InputError(refusal(f"the cluster at cluster.address={address}")) from error
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise InputError(
            f"no Ray cluster answers at cluster.address={address} ({error}); start one with "
            "`ray start --head` or `ray up`, or leave cluster.address out to start one here"
        ) from error


def _environment(dashboard: str | None) -> dict[str, Any]:
    """Environment of every process of the job.

    When ASHA stops a trial, a watcher of Ray's frees the trial's workers, and it asks the dashboard who is alive.
    Left to itself it guesses the dashboard's address, and with two clusters on a machine it gives up and the
    workers' CPUs are lost to the job for good.
    """
    variables = {
        # A process group that a lost worker belongs to is not left in good order; waiting for it only costs time.
        "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
    }
    if dashboard:
        variables["RAY_API_SERVER_ADDRESS"] = f"http://{dashboard}"
    known = commit.code_commit()
    # A submitted job's processes have it already, and Ray refuses a variable that is given twice.
    if known is not None and commit.VARIABLE not in os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", ""):
        # The code may lie there without its repository.
        variables[commit.VARIABLE] = known
    return {"env_vars": variables}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
