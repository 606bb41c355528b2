"""The training loop: load, step, validate, save, report.

It knows its ``Runtime`` and nothing of what is behind it.
"""

import os
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import get_args

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bts_dist import checkpoint
from bts_dist.checkpoint import Progress, TrainState
from bts_dist.config import Config
from bts_dist.data import Batch, SampleSource, prefetch
from bts_dist.exact import exact_step
from bts_dist.lease import Attempt, begin
from bts_dist.losses import Losses
from bts_dist.optim import Ema, make_optimizer, set_lr
from bts_dist.runtime import Runtime, all_reduce
from bts_dist.saver import Due, Saver
from bts_dist.step import Trainer, average_buffers, train_step
from bts_dist.track import NullTracker, Tracker, open_tracker, wandb_id
from bts_dist.unet import count_parameters, make_unet
from bts_dist.validate import Validation, draw_overlays, validate
from shards.errors import InputError
from shards.order import Ids, check_batch
from shards.reader import PackedData, TrainingSplit
from shards.store import ObjectStore


def train(
    config: Config, runtime: Runtime, run: ObjectStore, workspace: Path, owner: int | None = None
) -> Progress:
    """Train until the last epoch or early stopping, resuming from the run's newest whole checkpoint.

    ``workspace`` is a local folder for rank 0's records, ``owner`` the ownership of the run that ``lease.own`` gave.
    Every rank returns the same progress.

    Raises:
        InputError: data, model and world size do not fit together, or the run cannot be resumed like this.
        FloatingPointError: the loss or its gradient is not finite.
        FencedError: another command, or a later attempt of this one, has taken over.
    """
    notes: list[str] = []
    attempt = _begin(runtime, run, owner)
    trainer = _prepare(config, runtime, run, attempt, notes)
    progress = trainer.state.progress
    with (
        closing(trainer.train),
        closing(trainer.val),
        closing(_batches(trainer)) as batches,
        _tracker(trainer, run, workspace) as tracker,
        Saver(attempt, config.train.keep_checkpoints) as saver,
    ):
        for note in [*notes, trainer.train.note, _description(trainer)]:
            tracker.note(progress.step, note)
        while not _finished(config, progress):
            _epoch(trainer, batches, tracker, saver)
    return progress


def _epoch(trainer: Trainer, batches: Iterator[Batch], tracker: Tracker, saver: Saver) -> None:
    """Train what is left of an epoch, validate, save, and tell the world."""
    progress = trainer.state.progress
    epoch, lr = progress.epoch, trainer.lr(progress.epoch)
    before = progress.step
    started = time.monotonic()
    loss, waited = _train_epoch(trainer, epoch, batches, tracker, saver)
    trained = time.monotonic()
    result = _validate(trainer, tracker)
    validated = time.monotonic()
    order = trainer.order(epoch)
    left = order.num_samples - order.bounds(before - epoch * order.num_steps)[0]
    row = {
        "epoch": progress.epoch,
        "train/loss": loss,
        "lr": lr,
        **result.metrics,
        "time/train_s": trained - started,
        "time/data_wait_s": waited,
        "time/val_s": validated - trained,
        "time/checkpoint_s": saver.stalled(),
        "samples_per_s": left / (trained - started),
    }
    tracker.log("epoch", progress.step, row)
    _save(trainer, tracker, saver)
    trainer.runtime.report(row)


def _begin(runtime: Runtime, run: ObjectStore, owner: int | None) -> Attempt:
    """This start of the workers: its number is drawn by rank 0 and told to the others."""
    number = torch.zeros(1, dtype=torch.int64, device=runtime.device)
    if runtime.rank == 0:
        number += begin(run, owner).number
    return Attempt(run, int(all_reduce(number)))


def check_fit(config: Config, world_size: int) -> PackedData:
    """Open the data and check that it can be trained on as configured, before anything is started.

    Raises:
        InputError: no data set, no training or validation patients, too few samples for the workers, or slices
            that the model's depth does not divide.
    """
    data = PackedData(config.data.shards, config.store, config.data)
    manifest = data.manifest
    for split in ("train", "val"):
        if not manifest.patients[split]:
            raise InputError(f"{config.data.shards} has no {split} patients; pack it with split.kind=patient")
    try:
        check_batch(manifest.num_samples("train"), config.train.global_batch, world_size)
    except ValueError as error:
        raise InputError(str(error)) from error
    size = config.data.image_size
    sides = (manifest.height, manifest.width) if size is None else (size, size)
    step = 2 ** (config.model.depth - 1)
    if any(side % step for side in sides):
        raise InputError(
            f"slices of {sides[0]} × {sides[1]} pixels do not divide by {step}, which model.depth "
            f"{config.model.depth} needs; set data.image_size to a multiple of {step} or lower model.depth"
        )
    return data


def _prepare(
    config: Config, runtime: Runtime, run: ObjectStore, attempt: Attempt, notes: list[str]
) -> Trainer:
    """Open the data, build the model and restore the newest whole checkpoint."""
    _set_up(config, runtime)
    data = check_fit(config, runtime.world_size)
    train, val = (
        SampleSource(data.training(split), config.data, runtime.device) for split in get_args(TrainingSplit)
    )
    torch.manual_seed(config.train.seed)
    model: nn.Module = make_unet(config.model, runtime.device, channels_last=config.train.channels_last)
    if config.model.norm == "batch" and runtime.world_size > 1 and runtime.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    ema = Ema(model, config.optim.ema) if config.optim.ema is not None else None
    patients = sorted({*train.reader.index.patient, *val.reader.index.patient})
    progress = Progress(data_id=data.manifest.data_id, patients=patients)
    state = TrainState(model, make_optimizer(config.optim, model), ema, progress)
    _restore(state, run, notes)
    if state.progress.data_id != data.manifest.data_id:
        raise InputError(
            f"the run to resume was trained on data set {state.progress.data_id}, {config.data.shards} is "
            f"{data.manifest.data_id}; give the run another name with --set run.name=…"
        )
    _check_same_start(runtime, state.progress.step)
    network: nn.Module = model
    if runtime.world_size > 1 and not config.train.deterministic:
        ids = [runtime.device.index] if runtime.device.type == "cuda" else None
        # Running statistics are averaged once an epoch; rank 0's at every step would drop what the others saw.
        network = DistributedDataParallel(
            model, device_ids=ids, gradient_as_bucket_view=True, broadcast_buffers=False
        )
    return Trainer(config, runtime, network, state, train, val, attempt.number)


def _restore(state: TrainState, run: ObjectStore, notes: list[str]) -> None:
    """Put the newest whole checkpoint into ``state``, if there is one."""
    with tempfile.TemporaryDirectory(prefix="bts-") as scratch:
        latest = checkpoint.fetch_newest(run, Path(scratch), notes.append)
        if latest is not None:
            checkpoint.load(state, latest)


def _check_same_start(runtime: Runtime, step: int) -> None:
    """Raise ``InputError`` on every rank unless all of them start at the same step."""
    steps = torch.zeros(runtime.world_size, dtype=torch.int64, device=runtime.device)
    steps[runtime.rank] = step
    found = all_reduce(steps).tolist()
    if len(set(found)) > 1:
        raise InputError(
            f"the workers found checkpoints of different steps, by rank {found}; put run.dir where every node "
            "sees the same files, or on s3://"
        )


def _batches(trainer: Trainer) -> Generator[Batch, None, None]:
    """This rank's parts of all global batches that are left to train on, one epoch after another."""
    progress, runtime = trainer.state.progress, trainer.runtime

    def parts() -> Iterator[Ids]:
        first = progress.step
        for epoch in range(progress.epoch, trainer.config.train.epochs):
            order = trainer.order(epoch)
            for step in range(max(0, first - epoch * order.num_steps), order.num_steps):
                yield order.part(step, runtime.rank, runtime.world_size)

    return prefetch(trainer.train, parts())


def _train_epoch(
    trainer: Trainer, epoch: int, batches: Iterator[Batch], tracker: Tracker, saver: Saver
) -> tuple[float, float]:
    """Take what is left of an epoch's steps: the mean loss of all of them, and the seconds spent waiting for data.

    Afterwards all ranks hold the same weights.
    """
    cfg, progress, order = trainer.config, trainer.state.progress, trainer.order(epoch)
    trainer.network.train()
    take_step = exact_step if cfg.train.deterministic else train_step
    losses = Losses(trainer)
    due = Due(trainer)
    waited, logged_at, logged_samples = 0.0, time.monotonic(), 0
    for step in range(progress.step - epoch * order.num_steps, order.num_steps):
        asked = time.monotonic()
        batch = next(batches)
        waited += time.monotonic() - asked
        lr = trainer.lr(epoch + step / order.num_steps)
        set_lr(trainer.state.optimizer, lr)
        start, stop = order.bounds(step)
        losses.add(*take_step(trainer, batch, epoch, stop - start))
        progress.step += 1
        logged_samples += stop - start
        if progress.step % cfg.train.log_every == 0:
            loss, norm = losses.check()
            now = time.monotonic()
            row = {"loss": loss, "lr": lr, "grad_norm": norm, "epoch": epoch + (step + 1) / order.num_steps}
            tracker.log("step", progress.step, {**row, "samples_per_s": logged_samples / (now - logged_at)})
            logged_at, logged_samples = now, 0
        if step + 1 < order.num_steps and due():
            losses.check()
            progress.loss_sum = losses.total()
            average_buffers(trainer)
            _save(trainer, tracker, saver)
    losses.check()
    progress.loss_sum = 0.0
    return losses.total() / order.num_steps, waited


def _validate(trainer: Trainer, tracker: Tracker) -> Validation:
    """Validate the weights, take the result into the progress and draw the predictions when they are the best."""
    average_buffers(trainer)
    model, progress = trainer.evaluated_model(), trainer.state.progress
    result = validate(model, trainer.val, trainer.config, trainer.runtime)
    if _record(trainer, result) and trainer.runtime.rank == 0:
        pictures = draw_overlays(model, trainer.val, trainer.config, trainer.runtime.device)
        tracker.images(progress.step, pictures)
    return result


def _record(trainer: Trainer, result: Validation) -> bool:
    """Take an epoch's validation into the progress; whether it is the best so far."""
    progress = trainer.state.progress
    better = not progress.val_dice or result.dice > max(progress.val_dice)
    progress.epoch += 1
    progress.val_dice.append(result.dice)
    progress.threshold = result.threshold
    if better:
        progress.best = trainer.checkpoint_name
    return better


def _save(trainer: Trainer, tracker: Tracker, saver: Saver) -> None:
    """Begin to save the state at this step, which is the same on all ranks."""
    if trainer.runtime.rank == 0:
        # The record goes first: a checkpoint is never ahead of the rows that led to it.
        tracker.flush()
        saver.save(trainer.state, trainer.config, trainer.checkpoint_name)


def _finished(config: Config, progress: Progress) -> bool:
    if progress.epoch >= config.train.epochs:
        return True
    patience, scores = config.train.early_stop, progress.val_dice
    return bool(patience and scores and len(scores) - 1 - scores.index(max(scores)) >= patience)


def _set_up(config: Config, runtime: Runtime) -> None:
    if config.train.deterministic:
        torch.use_deterministic_algorithms(True)
        os.environ.setdefault(
            "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
        )  # which CUDA's matrix products then ask for
    if config.train.threads is not None or config.train.deterministic:
        # A CPU's kernels divide their sums by the number of threads.
        torch.set_num_threads(config.train.threads or 1)
    elif runtime.world_size > 1 and runtime.device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // runtime.world_size))


def _tracker(trainer: Trainer, run: ObjectStore, workspace: Path) -> Tracker:
    if trainer.runtime.rank != 0:
        return NullTracker()
    progress = trainer.state.progress
    if progress.wandb_id is None:
        progress.wandb_id = wandb_id(run)
    return open_tracker(trainer.config, run, workspace, step=progress.step, wandb_id=progress.wandb_id)


def _description(trainer: Trainer) -> str:
    cfg, runtime, progress = trainer.config, trainer.runtime, trainer.state.progress
    index = trainer.train.reader.index
    start = f"resuming after epoch {progress.epoch}" if progress.epoch else "training"
    return (
        f"{start}: {count_parameters(trainer.state.model):,} parameters, {len(index)} slices of "
        f"{len(index.patients())} patients, {runtime.world_size} worker(s) on {runtime.device}, "
        f"global batch {cfg.train.global_batch}"
    )
