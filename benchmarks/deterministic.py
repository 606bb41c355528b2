"""What ``train.deterministic`` costs: its step beside the usual one, on one rank and on two, and where the time goes.

    python benchmarks/deterministic.py      # some minutes; writes benchmarks/results/deterministic.md

Real steps of the model of ``configs/lgg-cpu.yaml`` with group norm, on phantom slices, ranks over gloo.  Kinds of
steps take turns, each with a model of its own; a step's time is the slowest rank's.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from environment import ROOT, describe
from steps import EPOCH_SLICES, make_phantom, make_trainer, seconds, table
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bts_dist.compose import load_config, with_overrides
from bts_dist.config import Config
from bts_dist.data import Batch
from bts_dist.exact import _samples, _sums, exact_step
from bts_dist.loss import global_loss, loss_of_sums
from bts_dist.runtime import Runtime, all_reduce, local_runtime, torchrun_runtime
from bts_dist.step import Trainer, train_step
from bts_dist.unet import count_parameters, make_unet

RESULT = Path(__file__).with_name("results") / "deterministic.md"
BATCH = 16

PREDICTION = """\
Written down before this page was first made. A forward pass is one unit of work, a backward pass two:

- **One rank.** Exact: three units like the usual step, so what it costs more is no batching: nothing with one thread
  (16 samples of 128 px do not share a cache), a ratio of 1.1; with two threads, which divide a sample's small layers
  badly, 1.4. Before: four units, so 4/3 of these.
- **Two ranks.** Exact: as on one rank, 1.1, and the sum's way from rank to rank, 2 × 8 MB at 1 GB/s, 0.02 s. Before:
  half of the batch forward beside each other, but all of it, three units, one after another, since each rank waited
  for the other's samples: 0.5 + 3 units for the usual 1.5, a ratio of 2.3, and 16 × 8 MB."""

Step = Callable[[Trainer, Batch, int, int], object]


@dataclass(frozen=True)
class Setting:
    ranks: int
    threads: int


SETTINGS = (Setting(1, 1), Setting(2, 1), Setting(1, 2))
PREDICTED = {"exact": "1.1, 1.1, 1.4", "exact, before": "1.5, 2.3, 1.9"}
"""Ratios to the usual step in these settings, from ``PREDICTION``."""


def exact_before(trainer: Trainer, batch: Batch, epoch: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """The exact step until this was measured: two forward passes, and a broadcast of each sample's gradient."""
    cfg, runtime, state = trainer.config, trainer.runtime, trainer.state
    parts = [rank * batch_size // runtime.world_size for rank in range(runtime.world_size + 1)]
    first = parts[runtime.rank]
    samples = _samples(trainer, batch, epoch)
    num_pixels = batch_size * samples[0][1].shape[-1] * samples[0][1].shape[-2]
    with torch.no_grad():
        own = [_sums(trainer, *sample, position) for position, sample in enumerate(samples, start=first)]
    by_position = torch.zeros(batch_size, *own[0].shape)
    by_position[first : first + len(own)] = torch.stack(own)
    total = all_reduce(by_position).sum(dim=0)
    parameters = [p for p in state.model.parameters() if p.requires_grad]
    gradient = torch.zeros(sum(p.numel() for p in parameters))
    for owner in range(runtime.world_size):
        for position in range(parts[owner], parts[owner + 1]):
            share = torch.empty_like(gradient)
            if owner == runtime.rank:
                sums = _sums(trainer, *samples[position - first], position)
                loss = global_loss(sums, num_pixels, cfg.loss, all_reduce, total)
                share = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)])
            if runtime.world_size > 1:
                dist.broadcast(share, owner)
            gradient += share
    sizes = [p.numel() for p in parameters]
    for parameter, values in zip(parameters, torch.split(gradient, sizes), strict=True):
        parameter.grad = values.view_as(parameter)
    norm = nn.utils.clip_grad_norm_(parameters, cfg.optim.grad_clip or float("inf"))
    state.optimizer.step()
    if state.ema is not None:
        state.ema.update(state.model)
    return loss_of_sums(total, num_pixels, cfg.loss), norm


STEPS: dict[str, tuple[Step, Mapping[str, object]]] = {
    "usual": (train_step, {}),
    "usual, samples one by one": (train_step, {"train.micro_batch": 1}),
    "exact": (exact_step, {"train.deterministic": True}),
    "exact, two forward passes": (exact_step, {"train.deterministic": True, "train.micro_batch": 1}),
    "exact, before": (exact_before, {"train.deterministic": True}),
}
"""Kinds of steps, each with what it changes in the config."""
EXACT = [name for name, (step, _) in STEPS.items() if step is not train_step]


@dataclass(frozen=True)
class Measured:
    seconds: dict[str, list[float]]
    """Of each step, by kind; and of the exchange of gradients alone."""
    norms: dict[str, float]
    """The last gradient's norm, which shows whether kinds took the same steps."""


def measure(config: Config, runtime: Runtime, repeats: int) -> Measured:
    """Steps of each kind in turn, the first of each not counted."""
    took: dict[str, list[float]] = {name: [] for name in STEPS}
    trainers = {name: _trainer(config, runtime, name) for name in STEPS}
    order = trainers["usual"].order(0)
    batch = trainers["usual"].train.batch(order.part(0, runtime.rank, runtime.world_size))
    norms: dict[str, float] = {}
    for repeat in range(repeats + 1):
        first = repeat % len(STEPS)
        for name in [*STEPS, *STEPS][first : first + len(STEPS)]:
            step, trainer = STEPS[name][0], trainers[name]

            def taken(step: Step = step, trainer: Trainer = trainer, name: str = name) -> None:
                norms[name] = float(step(trainer, batch, 0, config.train.global_batch)[1])  # type: ignore[index]

            torch.use_deterministic_algorithms(name in EXACT)
            all_reduce(torch.zeros(1))  # all begin together
            slowest = torch.tensor(seconds(taken))
            trainer.state.progress.step += 1
            if dist.is_initialized():
                dist.all_reduce(slowest, dist.ReduceOp.MAX)
            if repeat:
                took[name].append(float(slowest))
    if runtime.world_size > 1:
        took |= _exchanges(runtime, count_parameters(trainers["usual"].state.model), repeats)
    for trainer in trainers.values():
        trainer.train.close()
        trainer.val.close()
    return Measured(took, norms)


def _trainer(config: Config, runtime: Runtime, name: str) -> Trainer:
    trainer = make_trainer(with_overrides(config, STEPS[name][1]), runtime)
    if runtime.world_size > 1 and name not in EXACT:
        model = DistributedDataParallel(
            trainer.state.model, gradient_as_bucket_view=True, broadcast_buffers=False
        )
        return replace(trainer, network=model)
    return trainer


def _exchanges(runtime: Runtime, num_parameters: int, repeats: int) -> dict[str, list[float]]:
    """What the exact steps exchange, alone: now, and before."""
    gradient = torch.ones(num_parameters)

    def chain() -> None:
        if runtime.rank > 0:
            dist.recv(gradient, runtime.rank - 1)
        if runtime.rank + 1 < runtime.world_size:
            dist.send(gradient, runtime.rank + 1)
        dist.broadcast(gradient, runtime.world_size - 1)

    def broadcasts() -> None:
        for position in range(BATCH):
            dist.broadcast(gradient, position * runtime.world_size // BATCH)

    took: dict[str, list[float]] = {"exchange": [], "exchange, before": []}
    for _ in range(repeats):
        for name, exchange in zip(took, (chain, broadcasts), strict=True):
            dist.barrier()
            took[name].append(seconds(exchange))
    return took


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a tiny model, to prove that it runs")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--rank", type=Path, metavar="JOB", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        work(options.rank)
        return
    tiny = {"model.features": 2, "model.depth": 2, "data.image_size": 32} if options.quick else {}
    with tempfile.TemporaryDirectory() as scratch:
        shards = make_phantom(Path(scratch) / "phantom", 32 if options.quick else 128)
        settings = {"data.shards": shards, "data.cache": "none", "model.norm": "group", **tiny}
        config = with_overrides(load_config([ROOT / "configs" / "lgg-cpu.yaml"], []), settings)
        measured = {}
        for setting in SETTINGS:
            measured[setting] = start(config, setting, options.repeats, Path(scratch))
            sys.stderr.write(f"{setting}: {measured[setting]}\n")
    page = report(measured, config, options.repeats)
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(page)
    sys.stdout.write(page)


def start(config: Config, setting: Setting, repeats: int, scratch: Path) -> Measured:
    """Measure in processes of their own, one a rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = scratch / "job.json"
    job.write_text(
        json.dumps({"config": config.model_dump(mode="json"), "threads": setting.threads, "repeats": repeats})
    )
    environ = os.environ | {
        "WORLD_SIZE": f"{setting.ranks}",
        "LOCAL_WORLD_SIZE": f"{setting.ranks}",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": f"{port}",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--rank", job],
            env=environ | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"},
        )
        for rank in range(setting.ranks)
    ]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise RuntimeError("a rank failed; its error is above")
    return Measured(**json.loads(job.with_suffix(".measured").read_text()))


def work(job: Path) -> None:
    """One rank."""
    told = json.loads(job.read_text())
    torch.set_num_threads(told["threads"])
    config, repeats = Config.model_validate(told["config"]), told["repeats"]
    if os.environ["WORLD_SIZE"] == "1":
        measured = measure(config, local_runtime(), repeats)
    else:
        with torchrun_runtime() as runtime:
            measured = measure(config, runtime, repeats)
    if os.environ["RANK"] == "0":
        job.with_suffix(".measured").write_text(json.dumps(vars(measured)))


def report(measured: Mapping[Setting, Measured], config: Config, repeats: int) -> str:
    num_bytes = 4 * count_parameters(make_unet(config.model, torch.device("cpu")))
    names = [_named(setting) for setting in measured]
    ratios = [
        (
            name,
            *(_ratio(m.seconds[name], m.seconds["usual"]) for m in measured.values()),
            PREDICTED.get(name, "–"),
        )
        for name in STEPS
        if name != "usual"
    ]
    steps = [(name, *(_range(m.seconds[name]) for m in measured.values())) for name in STEPS]
    exchanged = {name: s for m in measured.values() for name, s in m.seconds.items() if name not in STEPS}
    exchanges = [
        ("exchange", f"2 × {num_bytes / 1e6:.1f}", _range(exchanged["exchange"])),
        ("exchange, before", f"{BATCH} × {num_bytes / 1e6:.1f}", _range(exchanged["exchange, before"])),
    ]
    norms = {(setting.threads, m.norms[name]) for setting, m in measured.items() for name in EXACT}
    same = len(norms) == len({threads for threads, _ in norms})
    return f"""\
# What the deterministic step costs

{describe(("torch",))}
- Load average at the end: {os.getloadavg()[1]:.1f}

{num_bytes // 4:,} parameters, batch {BATCH}, {config.data.image_size} px, `train.precision` {config.train.precision}.
Medians of {repeats} steps with the least and the most; an epoch is {-(-EPOCH_SLICES // BATCH)} steps. At the end the
gradients' norms of all exact kinds {"are equal bit for bit" if same else f"DIFFER: {sorted(norms)}"} for each number
of threads, whatever the number of ranks.

## Ratios to the usual step of the same turn

{table(("step", *names, "predicted"), ratios)}

"One by one" is the usual step with `train.micro_batch: 1`: no batching, and a second forward pass. "Two forward passes"
is the exact step with the same setting. "Before" is the exact step until this page was made.

## Seconds of a step

{table(("step", *names), steps)}

## The exchange of gradients between two ranks, alone

{table(("what", "MB", "seconds"), exchanges)}

## Prediction

{PREDICTION}
"""


def _named(setting: Setting) -> str:
    return f"{setting.ranks} rank{'s' * (setting.ranks > 1)}, {setting.threads} thread{'s' * (setting.threads > 1)}"


def _ratio(ours: Sequence[float], usual: Sequence[float]) -> str:
    return _range([a / b for a, b in zip(ours, usual, strict=True)])


def _range(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g}–{max(values):.3g})"


if __name__ == "__main__":
    main()
