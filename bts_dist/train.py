"""The training loop: load, step, validate, save, report.

It knows its ``Runtime`` and nothing of what is behind it.
"""

import os
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import get_args

import torch
from torch import nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel

from bts_dist import checkpoint, cohort, memory
from bts_dist.account import gather, open_account, shares, training_seconds, validation_seconds
from bts_dist.attempt import Attempt, begin
from bts_dist.checkpoint import Progress, TrainState
from bts_dist.config import Config
from bts_dist.data import Batch, SampleSource, prefetch
from bts_dist.devices import Devices, gather_devices
from bts_dist.exact import exact_step
from bts_dist.flops import Yardstick, yardstick
from bts_dist.losses import Losses
from bts_dist.node_metrics import LoadReader, NodeMeter, by_node
from bts_dist.optim import Ema, make_optimizer, set_lr
from bts_dist.recovery import beating, interruption, noting_recovery
from bts_dist.runtime import Runtime, all_reduce
from bts_dist.saver import Saver
from bts_dist.saving import Saving
from bts_dist.stall import watching
from bts_dist.step import Trainer, train_step
from bts_dist.track import NullTracker, Tracker, open_tracker, wandb_id
from bts_dist.unet import count_parameters, make_unet
from bts_dist.validate import Validation, draw_overlays, validate
from bts_dist.wandb_artifacts import DataReference, ModelReference
from shards.cpus import available_cpus
from shards.errors import InputError
from shards.order import Ids, check_batch
from shards.reader import PackedData, TrainingSplit
from shards.store import ObjectStore, open_store


def train(
    config: Config, runtime: Runtime, run: ObjectStore, workspace: Path, owner: int | None = None
) -> Progress:
    """Train until the last epoch or early stopping, resuming from the run's newest whole checkpoint.

    ``workspace`` is a local folder for rank 0's records, ``owner`` the ownership of the run that ``lease.own`` gave.
    Every rank returns the same progress.

    Raises:
        InputError: data, model and world size do not fit together, or the run cannot be resumed like this.
        FloatingPointError: the loss, its gradient or the state is not finite.
        OutOfMemoryError: the memory is too small for these settings.
        FencedError: another command, or a later attempt of this one, has taken over.
    """
    notes: list[str] = []
    attempt = _begin(runtime, run, owner)
    before = interruption(run, attempt) if runtime.rank == 0 else None
    trainer = _prepare(config, runtime, run, attempt, notes)
    progress = trainer.state.progress
    saver = Saver(attempt, config.train.keep_checkpoints)
    speed = yardstick(config, runtime, trainer.train.sides)
    devices = gather_devices(runtime)
    notes.append(speed.note(config, runtime))
    with (
        closing(trainer.train),
        closing(trainer.val),
        closing(_batches(trainer)) as batches,
        _tracker(trainer, run, workspace, saver) as tracker,
        saver,  # left before the tracker, which then records what its last checkpoint covers
        beating(attempt, progress) if runtime.rank == 0 else nullcontext(),
        watching(attempt, runtime.rank, trainer.account, lambda text: tracker.note(progress.step, text)),
        NodeMeter(LoadReader(runtime.device)) as meter,
    ):
        for note in [*notes, trainer.train.note, _description(trainer)]:
            tracker.note(progress.step, note)
        steps = noting_recovery(batches, before, progress, tracker) if before else batches
        saving = Saving(trainer, saver, tracker)
        trainer.account.take()
        while not _finished(config, progress):
            _epoch(trainer, steps, tracker, saving, speed, devices, meter)
        if runtime.rank == 0:
            saver.wait()
            tracker.lineage(*_lineage(config, run, progress))
    return progress


def _epoch(
    trainer: Trainer,
    batches: Iterator[Batch],
    tracker: Tracker,
    saving: Saving,
    speed: Yardstick,
    devices: Devices,
    meter: NodeMeter,
) -> None:
    """Train what is left of an epoch, validate, save, and tell the world."""
    progress, account = trainer.state.progress, trainer.account
    epoch, lr = progress.epoch, trainer.lr(progress.epoch)
    order = trainer.order(epoch)
    left = order.num_samples - order.bounds(progress.step - epoch * order.num_steps)[0]
    loss = _train_epoch(trainer, epoch, batches, tracker, saving)
    with account.doing("validation"):
        result = _validate(trainer, tracker)
        by_rank = gather(account.take(), trainer.runtime)
        seconds, val_seconds = training_seconds(by_rank), validation_seconds(by_rank)
        row = {
            "epoch": progress.epoch,
            "train/loss": loss,
            "lr": lr,
            **result.metrics,
            "time/epoch_s": seconds + val_seconds,
            "time/train_s": seconds,
            "time/val_s": val_seconds,
            "samples_per_s": left / seconds,
            **shares(by_rank),
            **speed.figures(left / seconds),
            **by_node(meter.take(), trainer.runtime),
        }
        tracker.log("epoch", progress.step, {**row, "device": devices.name, "devices": devices.number})
    with account.doing("checkpoint"):
        saving.save()
    with account.doing("exchange"):
        trainer.runtime.report(row)


def _begin(runtime: Runtime, run: ObjectStore, owner: int | None) -> Attempt:
    """This start of the workers: its number is drawn by rank 0 and told to the others."""
    number = torch.zeros(1, dtype=torch.int64, device=runtime.device)
    if runtime.rank == 0:
        number += begin(run, owner, runtime.world_size).number
    return Attempt(run, int(all_reduce(number)), owner, runtime.world_size)


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
    scaler = GradScaler(runtime.device.type) if config.train.precision == "fp16" else None
    state = TrainState(model, make_optimizer(config.optim, model), ema, progress, scaler)
    _restore(state, run, notes)
    if state.progress.data_id != data.manifest.data_id:
        raise InputError(
            f"the run to resume was trained on data set {state.progress.data_id}, {config.data.shards} is "
            f"{data.manifest.data_id}; give the run another name with --set run.name=…"
        )
    if runtime.rank == 0 and state.progress.cohort is None:
        state.progress.cohort = cohort.to_json(cohort.summarise(train.reader))
    _check_same_start(runtime, state.progress.step)
    network: nn.Module = model
    account = open_account(runtime.device)
    if runtime.world_size > 1 and not config.train.deterministic:
        ids = [runtime.device.index] if runtime.device.type == "cuda" else None
        # Each step averages the running statistics; rank 0's alone would drop what the others saw.
        network = DistributedDataParallel(
            model, device_ids=ids, gradient_as_bucket_view=True, broadcast_buffers=False
        )
        account.watch(network)
    return Trainer(config, runtime, network, state, train, val, attempt.number, account)


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
    trainer: Trainer, epoch: int, batches: Iterator[Batch], tracker: Tracker, saving: Saving
) -> float:
    """Take what is left of an epoch's steps, and give the mean loss of all of them."""
    cfg, progress, order = trainer.config, trainer.state.progress, trainer.order(epoch)
    account = trainer.account
    trainer.network.train()
    take_step = exact_step if cfg.train.deterministic else train_step
    losses = Losses(trainer)
    logged_at, logged_samples = time.monotonic(), 0
    for step in range(progress.step - epoch * order.num_steps, order.num_steps):
        with account.doing("data"):
            batch = next(batches)
        lr = trainer.lr(epoch + step / order.num_steps)
        set_lr(trainer.state.optimizer, lr)
        start, stop = order.bounds(step)
        with memory.explained(memory.in_training, cfg, trainer.runtime, stop - start, trainer.train.sides):
            losses.add(*take_step(trainer, batch, epoch, stop - start))
        progress.step += 1
        logged_samples += stop - start
        if progress.step % cfg.train.log_every == 0:
            row = {**losses.check(), "lr": lr, "epoch": epoch + (step + 1) / order.num_steps}
            account.settle()
            now = time.monotonic()
            tracker.log("step", progress.step, {**row, "samples_per_s": logged_samples / (now - logged_at)})
            logged_at, logged_samples = now, 0
        if step + 1 < order.num_steps and saving.due():
            with account.doing("checkpoint"):
                losses.check_state()
                progress.loss_sum = losses.total()
                saving.save()
    losses.check_state()
    progress.loss_sum = 0.0
    return losses.total() / order.num_steps


def _validate(trainer: Trainer, tracker: Tracker) -> Validation:
    """Validate the weights, take the result into the progress and draw the predictions when they are the best."""
    model, progress = trainer.evaluated_model(), trainer.state.progress
    result = validate(model, trainer.val, trainer.config, trainer.runtime, trainer.account)
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
        torch.set_num_threads(max(1, available_cpus() // runtime.local_world_size))


def _tracker(trainer: Trainer, run: ObjectStore, workspace: Path, saver: Saver) -> Tracker:
    if trainer.runtime.rank != 0:
        return NullTracker()
    progress = trainer.state.progress
    if progress.wandb_id is None:
        progress.wandb_id = wandb_id(run)
    return open_tracker(
        trainer.config,
        run,
        workspace,
        step=progress.step,
        wandb_id=progress.wandb_id,
        published=lambda: saver.published,
    )


def _lineage(
    config: Config, run: ObjectStore, progress: Progress
) -> tuple[DataReference, dict[str, ModelReference]]:
    """What a finished training used, and its best and last checkpoint."""
    assert progress.best is not None
    assert progress.wandb_id is not None
    named = {"best": progress.best, "last": checkpoint.names(run)[0]}
    models = {alias: ModelReference(run, progress.wandb_id, name) for alias, name in named.items()}
    return DataReference(open_store(config.data.shards, config.store)), models


def _description(trainer: Trainer) -> str:
    cfg, runtime = trainer.config, trainer.runtime
    index = trainer.train.reader.index
    return (
        f"{_start(trainer)}: {count_parameters(trainer.state.model):,} parameters, {len(index)} slices of "
        f"{len(index.patients())} patients, {runtime.world_size} worker(s) on {runtime.device}, "
        f"global batch {cfg.train.global_batch}"
    )


def _start(trainer: Trainer) -> str:
    progress = trainer.state.progress
    if progress.step == 0:
        return "training"
    steps = progress.step - progress.epoch * trainer.order(progress.epoch).num_steps
    return f"resuming after epoch {progress.epoch}" + (f" and {steps} steps" if steps else "")
