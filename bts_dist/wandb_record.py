"""The W&B run of a training run: over any number of starts, each row once and in the order of steps.

W&B takes nothing back, while a killed run goes on from its last checkpoint and redoes the steps after it.  So W&B is
given a row only when a checkpoint that covers it is published.  A new start looks how far W&B has come, and first gives
it what it lacks of the rows that count.

How far that is cannot be written down beside: a row that was handed over lies in a buffer of W&B's own process for
up to a second, and dies with it when this one is killed.  So the logs that reached the disk are asked, or, online,
the server.

Rows that W&B has are skipped.  That matters where the newest checkpoint is damaged and training resumes from an older
one: the redone steps give the same numbers, but for rounding if the number of workers has changed.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from bts_dist.config import Config
from bts_dist.overlays import SliceOverlay
from bts_dist.pseudonyms import Rename, renaming
from bts_dist.wandb_artifacts import DataReference, ModelReference, log_artifact, use_artifact
from bts_dist.wandb_log import read_end
from bts_dist.wandb_login import LoginError, has_rows
from bts_dist.wandb_process import leave, limited, process_errors, said
from bts_dist.wandb_session import FINISH_S, Note, begin_wandb
from shards.errors import InputError
from shards.store import ObjectStore

FOLDER = "wandb"
MARK = ".synced"
"""Ends the name of the file by which ``wandb sync`` marks a log whose content W&B has."""

_BY_EPOCH = (
    *("train/*", "val/*", "time/*", "system/*", "share/*", "straggler/*"),
    *("lr", "samples_per_s", "mfu", "flops_per_s", "peak_flops_per_s", "device", "devices"),
)
"""Metrics that are drawn over epochs; all others over optimizer steps."""
_CLOSING_S = 10.0
"""How long W&B's process may take to close its log."""
_ASKING_S = 2.0
"""How long the server has, at the end, to show that it has the rows; twice that at the worst."""


class WandbRecord:
    """What W&B has been given, and what waits for a checkpoint.

    If W&B's process ends before this one, so does the record, which ``note`` is told once: nobody's work stops for it.
    """

    def __init__(self, wandb_run: Any, given: int, rename: Rename = str, note: Note = lambda _: None) -> None:
        self._run = wandb_run
        self._note = note
        self._lost = False
        self._given = given
        self._rename = rename
        self._waiting: defaultdict[int, dict[str, Any]] = defaultdict(dict)
        self._uploaded: dict[Path, tuple[int, int]] = {}
        """Size and time of change of the files that were copied."""

    def row(self, kind: str, step: int, at_s: float, row: Mapping[str, Any]) -> None:
        """Keep a row of metrics for W&B; ``at_s`` is in seconds of Unix time.

        Rows of steps and of epochs tell of what led to ``step``.  Those of other kinds tell of a start from there, and
        stand with the step that follows, since W&B may have ``step`` already.  Of several starts from one checkpoint
        W&B shows the last.
        """
        prefix = "" if kind == "epoch" else f"{kind}/"
        at = step if kind in ("step", "epoch") else step + 1
        self._add(at, {"_timestamp": at_s, **{f"{prefix}{name}": value for name, value in row.items()}})

    def images(self, step: int, pictures: Sequence[SliceOverlay]) -> None:
        """Keep pictures for W&B.  Unlike rows, those that still wait when the process is killed are lost."""
        if self._lost:
            return
        self._add(step, {"val/overlays": [layered(picture, self._rename) for picture in pictures]})

    def lineage(self, data: DataReference, models: Mapping[str, ModelReference]) -> None:
        """Say what the run was trained on, and which models came of it, by alias."""
        if self._lost:
            return
        with self.guard():
            use_artifact(self._run, data)
            for name in sorted({model.name for model in models.values()}):
                aliases = [alias for alias, model in models.items() if model.name == name]
                log_artifact(self._run, models[aliases[0]], aliases)

    def hand_over(self, step: int) -> None:
        """Give W&B all that waits up to ``step``, which a checkpoint covers."""
        with self.guard():
            for at in sorted(at for at in self._waiting if at <= step):
                # Once for each step, and committed: its log then holds all of a step or nothing.
                with limited():
                    self._run.log(self._waiting.pop(at), step=at, commit=True)
                self._given = at

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Around what W&B is told: ends the record where W&B's process does not take it any more."""
        try:
            yield
        except process_errors() as error:
            self._lost = True
            self._waiting.clear()
            leave()
            self._note(
                f"W&B: its process is gone or refuses ({said(error)}), so it is told nothing more of this start; the "
                "numbers go on in the run's folder, a later start makes up for what is missing, and `bts sync` uploads "
                "what W&B was told"
            )

    def upload(self, run: ObjectStore) -> None:
        """Copy what W&B has written since this start; the logs of earlier starts are the run's already."""
        folder = self._folder
        for path in sorted(folder.rglob("*")):
            if not path.is_file() or path.is_symlink():
                continue
            found = path.stat()  # before it is read, so that what comes meanwhile is a change
            known = (found.st_size, found.st_mtime_ns)
            if self._uploaded.get(path) != known:
                # Its bytes as they are now: the log grows while it is open.
                key = f"{FOLDER}/{folder.name}/{path.relative_to(folder).as_posix()}"
                run.put(key, path.read_bytes())
                self._uploaded[path] = known

    def finish(self, exit_code: int) -> None:
        """End W&B's part of this start; its log is whole afterwards, unless W&B's process is gone."""
        if self._lost:
            return
        sent = False
        upload_s = 0.0 if self._run.offline else FINISH_S
        # What is not sent in that time stays on disk, for `bts sync`.
        with self.guard(), suppress(TimeoutError), limited(upload_s):
            self._run.finish(exit_code=exit_code)
            sent = not self._run.offline
        if self._lost:
            return
        # W&B's process writes the rest when it has answered.  If it never does, the next start sees to it.
        logs = list(self._folder.glob("*.wandb"))
        deadline = time.monotonic() + _CLOSING_S
        while not all(read_end(log.read_bytes()).finished for log in logs) and time.monotonic() < deadline:
            time.sleep(0.05)
        for log in logs if sent else ():
            if _arrived(log):
                Path(f"{log}{MARK}").touch()

    @property
    def _folder(self) -> Path:
        return Path(self._run.dir).parent

    def _add(self, step: int, values: Mapping[str, Any]) -> None:
        if step > self._given and not self._lost:
            self._waiting[step] |= values


def _arrived(log: Path) -> bool:
    """Whether the server has the rows of a log: W&B's process also ends in good order when they were refused."""
    end = read_end(log.read_bytes())
    try:
        return not end.step or has_rows(
            end.entity, end.project, log.stem.removeprefix("run-"), end.step, _ASKING_S
        )
    except LoginError:
        return False


def layered(picture: SliceOverlay, rename: Rename) -> Any:
    """W&B's image of a slice, truth and prediction as layers that it shows and hides."""
    import wandb

    layers = {"truth": (1, picture.truth_HW), "prediction": (2, picture.prediction_HW)}
    return wandb.Image(
        picture.image_HWC,
        caption=f"{rename(picture.patient)} slice {picture.slice_number}",
        masks={
            name: {"mask_data": label * mask_HW.astype(np.uint8), "class_labels": {label: name}}
            for name, (label, mask_HW) in layers.items()
        },
    )


def open_wandb(
    config: Config, run: ObjectStore, workspace: Path, wandb_id: str, note: Note = lambda _: None
) -> WandbRecord | None:
    """Begin or continue the W&B run; None when W&B is disabled, or has no record of this start.

    ``note`` is told if it is offline unasked, if there is none, and if it ends too early.
    """
    if config.track.wandb == "disabled":
        return None
    rename = renaming(config, run)  # which may refuse: before W&B has begun anything
    # Also online: the server may be out of reach, now or at an earlier start.
    given = end_earlier_logs(run, wandb_id)
    errors: tuple[type[Exception], ...] = (*process_errors(), TimeoutError)
    try:
        wandb_run = begin_wandb(config, workspace, wandb_id, run.uri.rsplit("/", 1)[-1], note)
    except errors as error:
        note(f"W&B: no record of this start ({said(error)}); a later one makes up for it from metrics.jsonl")
        return None
    # Online the server says where it goes on.
    given = given if wandb_run.offline else wandb_run.starting_step - 1
    record = WandbRecord(wandb_run, given, rename, note)
    with record.guard(), limited():
        for name in _BY_EPOCH:
            wandb_run.define_metric(name, step_metric="epoch")
    return record


def end_earlier_logs(run: ObjectStore, wandb_id: str, below: str = "") -> int:
    """The highest step in the logs of earlier starts, to which nothing is added from now on.

    ``below`` is where the W&B run's own run lies in ``run``, with a slash at its end.

    The W&B process of a start that was killed may live a moment longer, and write.  Where a log has no end, its whole
    records take its place as a new file, and what still comes goes into the old one, which has no name any more.
    ``wandb sync`` would stop at a record cut short, and take no log at all beside one without a beginning.

    Raises:
        InputError: a log is of another format.
    """
    given = 0
    for entry in run.list(f"{below}{FOLDER}/"):
        if not fnmatchcase(entry.key.removeprefix(below), f"{FOLDER}/*run-*/run-{wandb_id}.wandb"):
            continue
        data = run.get(entry.key)
        try:
            end = read_end(data)
        except ValueError as error:
            raise InputError(
                f"{run.uri}/{entry.key} {error}; move its folder away, or set track.wandb=disabled"
            ) from error
        if not end.begun:
            run.delete(entry.key)
        elif not end.finished:
            run.put(entry.key, data[: end.size])
        given = max(given, end.step)
    return given
