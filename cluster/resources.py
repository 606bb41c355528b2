"""The Ray cluster a command runs on: joined or started, checked, and left as it was found."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from bts_dist.config import ClusterConfig
from shards.errors import InputError


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
    _connect(config)
    try:
        check_resources(config)
        yield
    finally:
        ray.shutdown()


def check_resources(config: ClusterConfig) -> None:
    """Refuse at once what Ray would wait for without end.

    Raises:
        InputError: the cluster has fewer CPUs or GPUs than the workers need.
    """
    total = ray.cluster_resources()
    for name, each in (("CPU", config.cpus_per_worker), ("GPU", config.gpus_per_worker)):
        have, want = total.get(name, 0.0), each * config.workers
        if want > have:
            raise InputError(
                f"{config.workers} workers with {each:g} {name} each need {want:g} {name}, the cluster has "
                f"{have:g}; lower cluster.workers or cluster.{name.lower()}s_per_worker"
            )


def max_concurrent(config: ClusterConfig) -> int:
    """How many trainings of this size fit on the cluster side by side."""
    total = ray.cluster_resources()
    fits = [total.get("CPU", 0.0) / (config.cpus_per_worker * config.workers)]
    if config.gpus_per_worker > 0:
        fits.append(total.get("GPU", 0.0) / (config.gpus_per_worker * config.workers))
    return max(1, int(min(fits)))


def worker_environment() -> dict[str, str]:
    """Environment of every worker.

    Ray frees a stopped trial's workers through the dashboard, whose address it does not hand down by itself.
    """
    context = ray.get_runtime_context()
    url = ray._private.worker.get_dashboard_url()
    names = {"BTS_RAY_JOB": context.get_job_id()}
    return names | ({"RAY_API_SERVER_ADDRESS": f"http://{url}"} if url else {})


def _connect(config: ClusterConfig) -> None:
    # Ray's own progress and warnings would drown ours; worker errors reach us as exceptions.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", "600")
    options = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if config.address is None:
        cpus = max(os.cpu_count() or 1, int(config.workers * config.cpus_per_worker + 0.999))
        ray.init(num_cpus=cpus, include_dashboard=True, **options)
    else:
        try:
            ray.init(address=config.address, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InputError(
                f"no Ray cluster answers at cluster.address={config.address} ({error}); start one with "
                "`ray start --head` or `ray up`, or leave cluster.address out to start one here"
            ) from error
    token = Path.home() / ".ray" / "auth_token"
    if token.is_file():
        # Ray makes it readable by all.
        token.chmod(0o600)
