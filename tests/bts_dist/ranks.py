"""Training whose every step is recorded, in this process or, run as a script, in one of several ranks.

``python ranks.py FOLDER`` is one rank: it trains each config in ``FOLDER/jobs.json`` and leaves ``<rank>.json``.
"""

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bts_dist import train as train_module
from bts_dist.config import Config
from bts_dist.data import Batch, SampleSource
from bts_dist.exact import exact_step
from bts_dist.runtime import Runtime, torchrun_runtime
from bts_dist.step import Trainer, train_step
from bts_dist.track import read_metrics
from bts_dist.unet import make_unet
from bts_dist.validate import validate
from shards.errors import InputError
from shards.reader import PackedData
from shards.store import LocalStore

Record = dict[str, Any]
Step = Callable[[Trainer, Batch, int, int], tuple[Tensor, Tensor]]


def record_training(
    config: Config, runtime: Runtime, run: LocalStore, stop_before: int | None = None
) -> Record:
    """Train and say what happened: sample ids and loss of each step, the last weights, or the user's error."""
    steps: list[Record] = []
    weights: dict[str, str] = {}

    def recording(step: Step) -> Step:
        def recorded(trainer: Trainer, batch: Batch, epoch: int, batch_size: int) -> tuple[Tensor, Tensor]:
            if trainer.state.progress.step + 1 == stop_before:
                raise InputError("stopped")
            loss, norm = step(trainer, batch, epoch, batch_size)
            number = trainer.state.progress.step + 1
            steps.append({"step": number, "ids": batch.ids.tolist(), "loss": float(loss)})
            return loss, norm

        return recorded

    def seen(trainer: Trainer) -> torch.nn.Module:
        ema = trainer.state.ema
        weights["model"] = digest(trainer.state.model.state_dict())
        weights["ema"] = digest(ema.weights) if ema is not None else ""
        return evaluated_model(trainer)

    evaluated_model = Trainer.evaluated_model
    train_module.train_step, train_module.exact_step = recording(train_step), recording(exact_step)
    Trainer.evaluated_model = seen  # type: ignore[method-assign]
    try:
        train_module.train(config, runtime, run, run.root)
    except InputError as error:
        return {"error": str(error), "steps": steps}
    finally:
        train_module.train_step, train_module.exact_step = train_step, exact_step
        Trainer.evaluated_model = evaluated_model  # type: ignore[method-assign]
        torch.use_deterministic_algorithms(False)
    return {"steps": steps, "weights": weights, "rows": read_metrics(run, "epoch")}


def digest(weights: Mapping[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for name, value in sorted(weights.items()):
        sha.update(name.encode() + value.contiguous().numpy().tobytes())
    return sha.hexdigest()


def validate_fresh(config: Config, runtime: Runtime) -> dict[str, float]:
    """Validate a model of fixed, random weights that calls about half of the pixels tumour."""
    torch.manual_seed(1)
    model = make_unet(config.model, runtime.device)
    torch.nn.init.normal_(model.heads[0].weight, std=1.0)  # type: ignore[arg-type]
    torch.nn.init.zeros_(model.heads[0].bias)  # type: ignore[arg-type]
    source = SampleSource(PackedData(config.data.shards).training("val"), config.data)
    return validate(model.eval(), source, config, runtime).metrics


def run_ranks(
    folder: Path, jobs: Mapping[str, Config], world_size: int, stop_before: int | None = None
) -> list[dict[str, Record]]:
    """Train each config on ``world_size`` processes over gloo; by rank, the records of the jobs.

    With ``stop_before`` the ranks stop before that step, as if interrupted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dumped = {name: json.loads(config.model_dump_json()) for name, config in jobs.items()}
    (folder / "jobs.json").write_text(json.dumps(dumped))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {
        **os.environ,
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), *([str(stop_before)] if stop_before else [])],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    errors = [process.communicate(timeout=240)[1] for process in processes]
    for process, error in zip(processes, errors, strict=True):
        assert process.returncode == 0, error
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world_size)]


def main(folder: Path, stop_before: int | None = None) -> None:
    jobs = {k: Config.model_validate(v) for k, v in json.loads((folder / "jobs.json").read_text()).items()}
    results: dict[str, Any] = {}
    with torchrun_runtime() as first:
        for name, config in jobs.items():
            # "{rank}" in a run's name gives each rank a run of its own, as on nodes that share no folder.
            root = folder / str(config.run.name).replace("{rank}", str(first.rank))
            run = LocalStore(str(root), root)
            results[name] = record_training(config, first, run, stop_before)
        results["validation"] = validate_fresh(next(iter(jobs.values())), first)
        (folder / f"{first.rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
