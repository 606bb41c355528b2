"""The training loop: load, step, validate, save, report.  It knows its ``Runtime`` and nothing of what is behind it."""

import hashlib
import os
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bts_dist import checkpoint
from bts_dist.checkpoint import Progress, TrainState
from bts_dist.config import Config
from bts_dist.data import SampleSource, prefetch
from bts_dist.optim import Ema, make_optimizer, set_lr
from bts_dist.runtime import Runtime
from bts_dist.step import Trainer, train_step
from bts_dist.track import NullTracker, Tracker, open_tracker
from bts_dist.unet import UNet, count_parameters
from bts_dist.validate import Validation, draw_overlays, validate
from shards.errors import InputError
from shards.order import check_batch
from shards.reader import PackedData
from shards.store import ObjectStore


def train(config: Config, runtime: Runtime, run: ObjectStore, workspace: Path) -> Progress:
    """Train until the last epoch or early stopping, resuming from the run's newest whole checkpoint.

    ``workspace`` is a local folder for rank 0's records.  Every rank returns the same progress.

    Raises:
        InputError: data, model and world size do not fit together.
        FloatingPointError: the loss is not finite.
    """
    notes: list[str] = []
    trainer = _prepare(config, runtime, notes)
    progress = trainer.state.progress
    with _tracker(trainer, run, workspace) as tracker:
        for note in [*notes, _description(trainer)]:
            tracker.note(progress.step, note)
        while not _finished(config, progress):
            epoch = progress.epoch
            started = time.monotonic()
            loss = _train_epoch(trainer, epoch, tracker)
            trained = time.monotonic()
            result = _validate(trainer)
            if _record(progress, result) and runtime.rank == 0:
                pictures = draw_overlays(trainer.evaluated_model(), trainer.val, config, runtime.device)
                tracker.images(progress.step, pictures)
            seconds = {"time/train_s": trained - started, "time/val_s": time.monotonic() - trained}
            samples = trainer.order(epoch).num_samples
            row = {
                "epoch": progress.epoch,
                "train/loss": loss,
                "lr": trainer.lr(epoch),
                **result.metrics,
                **seconds,
                "samples_per_s": samples / seconds["time/train_s"],
            }
            _save(trainer, row, tracker, run)
    trainer.train.close()
    trainer.val.close()
    return progress


def check_fit(config: Config, world_size: int) -> PackedData:
    """Open the data and check that it can be trained on as configured, before anything is started.

    Raises:
        InputError: no data set, no training or validation patients, too few samples for the workers, or slices
            that the model's depth does not divide.
    """
    data = PackedData(config.data.shards, config.store)
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


def _prepare(config: Config, runtime: Runtime, notes: list[str]) -> Trainer:
    """Open the data, build the model and restore the newest whole checkpoint."""
    _set_threads(config, runtime)
    data = check_fit(config, runtime.world_size)
    train = SampleSource(data.training("train"), config.data)
    val = SampleSource(data.training("val"), config.data)
    torch.manual_seed(config.train.seed)
    model = UNet(config.model).to(runtime.device)
    if config.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if config.model.norm == "batch" and runtime.world_size > 1 and runtime.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    ema = Ema(model, config.optim.ema) if config.optim.ema is not None else None
    patients = sorted({*train.reader.index.patient, *val.reader.index.patient})
    progress = Progress(data_id=data.manifest.data_id, patients=patients)
    state = TrainState(model, make_optimizer(config.optim, model), ema, progress)
    latest = runtime.latest_checkpoint(notes.append)
    if latest is not None:
        checkpoint.load(state, latest)
        if state.progress.data_id != data.manifest.data_id:
            raise InputError(
                f"the run to resume was trained on data set {state.progress.data_id}, {config.data.shards} is "
                f"{data.manifest.data_id}; give the run another name with --set run.name=…"
            )
    network: nn.Module = model
    if runtime.world_size > 1:
        ids = [runtime.device.index] if runtime.device.type == "cuda" else None
        network = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
    return Trainer(config, runtime, network, state, train, val)


def _train_epoch(trainer: Trainer, epoch: int, tracker: Tracker) -> float:
    """Take every step of one epoch; the mean loss of its steps."""
    cfg, runtime, progress = trainer.config, trainer.runtime, trainer.state.progress
    order = trainer.order(epoch)
    first = progress.step
    parts = (order.part(step, runtime.rank, runtime.world_size) for step in range(order.num_steps))
    trainer.network.train()
    losses: list[Tensor] = []
    logged = time.monotonic()
    for step, batch in enumerate(prefetch(trainer.train, parts)):
        lr = trainer.lr(epoch + step / order.num_steps)
        set_lr(trainer.state.optimizer, lr)
        start, stop = order.bounds(step)
        loss, norm = train_step(trainer, batch, epoch, stop - start)
        losses.append(loss)
        progress.step = first + step + 1
        if progress.step % cfg.train.log_every == 0:
            _check_finite(loss, progress.step)
            now = time.monotonic()
            row = {"loss": float(loss), "lr": lr, "epoch": epoch + (step + 1) / order.num_steps}
            rate = (stop - start) * cfg.train.log_every / (now - logged)
            tracker.log("step", progress.step, {**row, "grad_norm": float(norm), "samples_per_s": rate})
            logged = now
    mean = torch.stack(losses).mean()
    _check_finite(mean, progress.step)
    return float(mean)


def _validate(trainer: Trainer) -> Validation:
    return validate(trainer.evaluated_model(), trainer.val, trainer.config, trainer.runtime)


def _record(progress: Progress, result: Validation) -> bool:
    """Take an epoch's validation into the progress; whether it is the best so far."""
    better = not progress.val_dice or result.dice > max(progress.val_dice)
    progress.epoch += 1
    progress.val_dice.append(result.dice)
    progress.threshold = result.threshold
    if better:
        progress.best = checkpoint.checkpoint_name(progress.step)
    return better


def _save(trainer: Trainer, row: dict[str, float | int], tracker: Tracker, run: ObjectStore) -> None:
    """Write the checkpoint, then tell the world, then drop checkpoints nobody needs."""
    runtime, progress, cfg = trainer.runtime, trainer.state.progress, trainer.config
    tracker.log("epoch", progress.step, row)
    if runtime.rank != 0:
        runtime.report(row, None)
        return
    # The record goes first: a checkpoint is never ahead of the rows that led to it.
    tracker.flush()
    with tempfile.TemporaryDirectory(prefix="bts-checkpoint-") as scratch:
        folder = Path(scratch) / checkpoint.checkpoint_name(progress.step)
        checkpoint.save(trainer.state, cfg, folder)
        runtime.report(row, folder)
    checkpoint.prune(run, cfg.train.keep_checkpoints, progress.best)


def _finished(config: Config, progress: Progress) -> bool:
    if progress.epoch >= config.train.epochs:
        return True
    patience, scores = config.train.early_stop, progress.val_dice
    return bool(patience and scores and len(scores) - 1 - scores.index(max(scores)) >= patience)


def _check_finite(loss: Tensor, step: int) -> None:
    # The loss is global, so every rank sees the same value and all of them stop here.
    if not bool(torch.isfinite(loss)):
        raise FloatingPointError(
            f"the loss is {float(loss)} at step {step}; nothing of this epoch was saved. Lower optim.lr, set "
            "optim.grad_clip, or use train.precision=fp32"
        )


def _set_threads(config: Config, runtime: Runtime) -> None:
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    elif runtime.world_size > 1 and runtime.device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // runtime.world_size))


def _tracker(trainer: Trainer, run: ObjectStore, workspace: Path) -> Tracker:
    if trainer.runtime.rank != 0:
        return NullTracker()
    progress = trainer.state.progress
    if progress.wandb_id is None:
        # Fixed by the run's place, so that an attempt that died before its first checkpoint is continued too.
        progress.wandb_id = hashlib.sha256(run.uri.encode()).hexdigest()[:12]
    name = run.uri.rsplit("/", 1)[-1]
    return open_tracker(
        trainer.config, run, workspace, step=progress.step, wandb_id=progress.wandb_id, name=name
    )


def _description(trainer: Trainer) -> str:
    cfg, runtime, progress = trainer.config, trainer.runtime, trainer.state.progress
    index = trainer.train.reader.index
    start = f"resuming after epoch {progress.epoch}" if progress.epoch else "training"
    return (
        f"{start}: {count_parameters(trainer.state.model):,} parameters, {len(index)} slices of "
        f"{len(index.patients())} patients, {runtime.world_size} worker(s) on {runtime.device}, "
        f"global batch {cfg.train.global_batch}"
    )
