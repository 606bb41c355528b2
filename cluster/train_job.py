"""Training as a job: the same ``train()`` in this process, under torchrun, or on Ray Train workers."""

import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
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
from cluster.ray_runtime import ray_runtime
from cluster.resources import ray_cluster
from shards.errors import InputError


def run_training(config: Config, note: Note = lambda _: None) -> Progress:
    """Train as ``config`` says, resuming the run if it exists, and return how far it came.

    ``note`` is told what delays or changes the start.

    Raises:
        InputError: data, config and cluster do not fit together; nothing was started.
        RuntimeError: training failed more often than ``cluster.max_failures`` allows.
    """
    run = open_run(config)
    workers = config.cluster.workers if config.cluster.runtime == "ray" else 1
    check_fit(config, workers)
    with tempfile.TemporaryDirectory() as scratch:
        check_same_recipe(run, config, Path(scratch))
    match config.cluster.runtime:
        case "local":
            with own(run, note) as owner:
                return train(config, local_runtime(), run, workspace(run, config), owner)
        case "torchrun":
            with (
                torchrun_runtime() as runtime,
                own(run, note) if runtime.rank == 0 else nullcontext() as owner,
            ):
                return train(config, runtime, run, workspace(run, config), owner)
        case "ray":
            with own(run, note) as owner:
                with ray_cluster(config.cluster):
                    fit_on_ray(config, owner)
                return final_progress(config)


def fit_on_ray(config: Config, owner: int | None, callbacks: Sequence[UserCallback] = ()) -> None:
    """Run ``train_worker`` on the cluster's workers under DDP, for the run's owner."""
    cluster = config.cluster
    resources = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker > 0:
        resources["GPU"] = cluster.gpus_per_worker
    with tempfile.TemporaryDirectory(prefix="bts-ray-") as scratch:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"config": absolute(config).model_dump_json(), "owner": owner},
            scaling_config=ScalingConfig(
                num_workers=cluster.workers,
                use_gpu=cluster.gpus_per_worker > 0,
                resources_per_worker=resources,
            ),
            run_config=RunConfig(
                # Ray keeps its own notes of a run by name and would go on with an old one: each attempt is new.
                name=Path(scratch).name,
                storage_path=ray_storage(config, scratch),
                failure_config=FailureConfig(max_failures=cluster.max_failures),
                callbacks=list(callbacks),
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise _cause(error, config) from error


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
        folder = checkpoint.fetch_newest(open_run(config), Path(scratch), lambda _: None)
        if folder is None:
            raise RuntimeError(f"training ended without a whole checkpoint in {run_uri(config)}")
        return checkpoint.read_progress(folder)


def ray_storage(config: Config, scratch: str) -> str:
    """Where Ray keeps its own notes: a place that every node of the cluster sees."""
    if config.cluster.address is None:
        return scratch
    uri = run_uri(config)
    return f"{uri}/ray" if "://" in uri else str(Path(uri).resolve() / "ray")


def _cause(error: TrainingFailedError, config: Config) -> Exception:
    """The worker's own error, which is what the user can act on."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {}) or {}
    for rank, failure in sorted(failures.items()):
        cause = getattr(failure, "cause", None) or failure
        if isinstance(cause, InputError):
            return cause
        return RuntimeError(f"training failed on rank {rank}: {type(cause).__name__}: {cause}")
    return RuntimeError(
        f"training failed: {error}. What it had saved is in {run_uri(config)}; the same command goes on from there"
    )
