"""Training as a job: the same ``train()`` in this process, under torchrun, or on Ray Train workers."""

import math
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, UserCallback
from ray.train.torch import TorchTrainer

from bts_dist import checkpoint
from bts_dist.checkpoint import Progress
from bts_dist.config import Config
from bts_dist.lease import Note, own
from bts_dist.run import absolute, check_same_recipe, open_run, run_uri, workspace
from bts_dist.runtime import local_runtime, torchrun_runtime
from bts_dist.train import check_fit, train
from cluster.failures import FailureRecord, cause
from cluster.fatal import EndAtOnce, fatal_error
from cluster.process_group import NodeConfig
from cluster.ray_runtime import ray_runtime
from cluster.resources import check_resources, ray_cluster
from shards.location import absolute_uri
from shards.store import join_uri

_RAY = "ray"
"""The folder of a run with Ray's own notes, while it trains on a cluster that it has joined."""


def run_training(config: Config, note: Note = lambda _: None) -> Progress:
    """Train as ``config`` says, resuming the run if it exists, and return how far it came.

    ``note`` is told what delays or changes the start.

    Raises:
        InputError: data, config and cluster do not fit together.
        FloatingPointError: the training diverged.
        OutOfMemoryError: the memory is too small for these settings.
        RuntimeError: training failed more often than ``cluster.max_failures`` allows.
    """
    run = open_run(config)
    workers = config.cluster.most if config.cluster.runtime == "ray" else 1
    check_fit(config, workers)
    with tempfile.TemporaryDirectory() as scratch:
        check_same_recipe(run, config, Path(scratch))
    match config.cluster.runtime:
        case "local":
            with own(run, note) as owner:
                return train(
                    config, local_runtime(config.cluster.gpus_per_worker), run, workspace(run, config), owner
                )
        case "torchrun":
            with (
                torchrun_runtime(config.cluster.gpus_per_worker) as runtime,
                own(run, note) if runtime.rank == 0 else nullcontext() as owner,
            ):
                return train(config, runtime, run, workspace(run, config), owner)
        case "ray":
            with own(run, note) as owner:
                with ray_cluster(config.cluster):
                    for line in check_resources(config.cluster).notes:
                        note(line)
                    fit_on_ray(config, owner)
                return final_progress(config)


def fit_on_ray(config: Config, owner: int | None, callbacks: Sequence[UserCallback] = ()) -> None:
    """Run ``train_worker`` on the cluster's workers under DDP, for the run's owner."""
    cluster = config.cluster
    placement = check_resources(cluster)
    # Ray hands it on to the controller; left alone, it gives a silent worker ten minutes.
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(cluster.frozen_s)
    # Where fewer will do, it is not waited long for a node that may just have been lost.
    patience_s = 60 if cluster.fewest == cluster.most else 15
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(patience_s)
    with tempfile.TemporaryDirectory(prefix="bts-ray-") as scratch:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"config": absolute(config).model_dump_json(), "owner": owner},
            # What waits for another rank may wait for that rank's reading of a slow store.
            torch_config=NodeConfig(
                # NCCL wants a GPU for each rank; gloo takes tensors of a shared one as well.
                backend="nccl" if placement.gpus >= 1 else "gloo",
                timeout_s=math.ceil(config.store.deadline_s) + 60,
            ),
            scaling_config=ScalingConfig(
                num_workers=cluster.workers,
                use_gpu=placement.gpus > 0,
                resources_per_worker=dict(placement.worker),
                placement_strategy=cluster.placement.upper(),
                elastic_resize_monitor_interval_s=cluster.resize_s,
            ),
            run_config=RunConfig(
                # Ray keeps its own notes of a run by name and would go on with an old one: each attempt is new.
                name=Path(scratch).name,
                storage_path=ray_storage(config, scratch),
                failure_config=FailureConfig(
                    max_failures=cluster.max_failures,
                    controller_failure_limit=math.ceil(60 * cluster.wait_minutes / patience_s),
                ),
                # The last one may end the training: the others come first.
                callbacks=[FailureRecord(absolute(config)), *callbacks, EndAtOnce()],
            ),
        )
        try:
            with _interruptible():
                trainer.fit()
        except TrainingFailedError as error:
            raise fatal_error(error) or _told(error, config) from error
    clear_ray_storage(config)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C as elsewhere.

    Ray puts a handler of its own in place, which ends the workers, leaves by ``SystemExit`` and stays for ever.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def train_worker(loop_config: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    config = Config.model_validate_json(loop_config["config"])
    run = open_run(config)
    train(config, ray_runtime(), run, workspace(run, config), loop_config["owner"])


def final_progress(config: Config) -> Progress:
    """The progress in the run's newest whole checkpoint.

    Raises:
        RuntimeError: there is none, so training did not do what it said.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = checkpoint.fetch_newest(open_run(config), Path(scratch), lambda _: None, checkpoint.FACTS)
        if folder is None:
            raise RuntimeError(f"training ended without a whole checkpoint in {run_uri(config)}")
        return checkpoint.read_progress(folder)


def ray_storage(config: Config, scratch: str) -> str:
    """Where Ray keeps its own notes: a place that every node of the cluster sees."""
    if config.cluster.address is None:
        return scratch
    return join_uri(absolute_uri(run_uri(config)), _RAY)


def clear_ray_storage(config: Config) -> None:
    """Remove Ray's notes from the run, those of commands that were killed too: each attempt begins new ones."""
    if config.cluster.address is None:
        return
    run = open_run(config)
    for entry in run.list(f"{_RAY}/"):
        run.delete(entry.key)


def _told(error: TrainingFailedError, config: Config) -> Exception:
    """The workers' own error, which is what the user can act on."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {}) or {}
    saved = f"What was saved is in {run_uri(config)}; the same command goes on from there"
    if not failures:
        return RuntimeError(f"training failed: {error}. {saved}")
    limit = config.cluster.max_failures
    return RuntimeError(
        f"training failed: {cause(failures, config.cluster.frozen_s)}. That is one failure more than "
        f"cluster.max_failures={limit} allows. {saved}"
    )
