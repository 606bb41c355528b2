"""Training whose every step is recorded, in this process or, run as a script, in one of several ranks.

``python ranks.py FOLDER`` is one rank: it trains each config in ``FOLDER/jobs.json`` and leaves ``<rank>.json``.
"""

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from bts_dist import stall
from bts_dist import train as train_module
from bts_dist.account import Account, Seconds, gather
from bts_dist.config import Config
from bts_dist.data import Batch, SampleSource
from bts_dist.exact import exact_step
from bts_dist.runtime import Metrics, Runtime, torchrun_runtime
from bts_dist.step import Trainer, train_step
from bts_dist.track import read_metrics
from bts_dist.unet import make_unet
from bts_dist.validate import validate
from shards.errors import InputError
from shards.order import Ids
from shards.reader import PackedData
from shards.store import LocalStore

POISONED = "poisoned"
"""In a run of this name the last rank's last sample of the third step is not a number."""

Record = dict[str, Any]
DELAY_S = 0.2
"""How much longer a slow rank takes for each of the things it is slow in."""

Step = Callable[[Trainer, Batch, int, int], tuple[Tensor, Tensor]]


def record_training(
    config: Config, runtime: Runtime, run: LocalStore, stop_before: int | None = None
) -> Record:
    """Train and say what happened: sample ids and loss of each step, the last weights, or the error.

    Also how this rank spent its time in each epoch, and what it reported.
    """
    steps: list[Record] = []
    weights: dict[str, str] = {}
    accounts: list[Seconds] = []
    reports: list[Metrics] = []

    def recording(step: Step) -> Step:
        def recorded(trainer: Trainer, batch: Batch, epoch: int, batch_size: int) -> tuple[Tensor, Tensor]:
            if trainer.state.progress.step + 1 == stop_before:
                raise InputError("stopped")
            number = trainer.state.progress.step + 1
            if POISONED in run.root.name and number == 3 and runtime.rank == runtime.world_size - 1:
                batch.mean_BC[-1] = torch.nan
            loss, norm = step(trainer, batch, epoch, batch_size)
            steps.append(
                {"step": number, "ids": batch.ids.tolist(), "loss": float(loss), "state": now(trainer)}
            )
            if trainer.state.scaler is not None:
                steps[-1]["scale"] = trainer.state.scaler.get_scale()
            return loss, norm

        return recorded

    def seen(trainer: Trainer) -> torch.nn.Module:
        ema = trainer.state.ema
        weights["model"] = digest(trainer.state.model.state_dict())
        weights["ema"] = digest(ema.weights) if ema is not None else ""
        return evaluated_model(trainer)

    def gathering(mine: Seconds, runtime: Runtime) -> list[Seconds]:
        accounts.append(mine)
        return gather(mine, runtime)

    evaluated_model = Trainer.evaluated_model
    try:
        with (
            patch.object(train_module, "train_step", recording(train_step)),
            patch.object(train_module, "exact_step", recording(exact_step)),
            patch.object(train_module, "gather", gathering),
            patch.object(Trainer, "evaluated_model", seen),
            patch.object(type(runtime), "report", lambda _, metrics: reports.append(metrics)),
        ):
            train_module.train(config, runtime, run, run.root)
    except (InputError, FloatingPointError) as error:
        return {"error": str(error), "steps": steps}
    finally:
        torch.use_deterministic_algorithms(False)
    record = {"steps": steps, "weights": weights, "accounts": accounts, "reports": reports}
    notes = [row["text"] for row in read_metrics(run, "note")]
    return {**record, "rows": read_metrics(run, "epoch"), "notes": notes}


def now(trainer: Trainer) -> str:
    """Digest of the weights and their average as they are after a step."""
    ema = trainer.state.ema
    averages = {
        f"average of {name}": value for name, value in (ema.weights if ema is not None else {}).items()
    }
    return digest({**trainer.state.model.state_dict(), **averages})


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
    return validate(model.eval(), source, config, runtime, Account()).metrics


def run_ranks(
    folder: Path,
    jobs: Mapping[str, Config],
    world_size: int,
    stop_before: int | None = None,
    slow_rank: int | None = None,
    still_s: float | None = None,
) -> list[dict[str, Record]]:
    """Train each config on ``world_size`` processes over gloo; by rank, the records of the jobs.

    With ``stop_before`` the ranks stop before that step, as if interrupted.  ``slow_rank`` is slowed down.  A rank
    that does one thing for ``still_s`` seconds is taken to stand still.
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
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                __file__,
                str(folder),
                *map(json.dumps, (stop_before, rank == slow_rank, still_s)),
            ],
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


def slow_down() -> None:
    """Make this process slow in reading each batch, and once more before each backward pass."""
    batch, backward = SampleSource.batch, torch.autograd.backward

    def slow_batch(source: SampleSource, ids: Ids) -> Batch:
        time.sleep(DELAY_S)
        return batch(source, ids)

    def slow_backward(*arguments: Any, **options: Any) -> None:
        time.sleep(DELAY_S)
        backward(*arguments, **options)

    SampleSource.batch = slow_batch  # type: ignore[method-assign]
    torch.autograd.backward = slow_backward  # type: ignore[assignment]


def main(folder: Path, stop_before: int | None, slow: bool, still_s: float | None) -> None:
    if slow:
        slow_down()
    if still_s is not None:
        stall.STILL_S, stall.LOOK_S = still_s, still_s / 4
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
    main(Path(sys.argv[1]), *map(json.loads, sys.argv[2:]))
