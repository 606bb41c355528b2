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
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from PIL import Image

from bts_dist.config import Config
from bts_dist.wandb_log import read_end
from shards.errors import InputError
from shards.store import ObjectStore

FOLDER = "wandb"

_BY_EPOCH = ("train/*", "val/*", "time/*", "lr", "samples_per_s")
"""Metrics that are drawn over epochs; all others over optimizer steps."""
_CLOSING_S = 10.0
"""How long W&B's process may take to close its log."""


class WandbRecord:
    """What W&B has been given, and what waits for a checkpoint."""

    def __init__(self, wandb_run: Any, given: int) -> None:
        self._run = wandb_run
        self._given = given
        self._waiting: defaultdict[int, dict[str, Any]] = defaultdict(dict)

    def row(self, kind: str, step: int, at_s: float, row: Mapping[str, Any]) -> None:
        """Keep a row of metrics for W&B; ``at_s`` is in seconds of Unix time.

        Rows of steps and of epochs tell of what led to ``step``.  Those of other kinds tell of a start from there, and
        stand with the step that follows, since W&B may have ``step`` already.  Of several starts from one checkpoint
        W&B shows the last.
        """
        prefix = "" if kind == "epoch" else f"{kind}/"
        at = step if kind in ("step", "epoch") else step + 1
        self._add(at, {"_timestamp": at_s, **{f"{prefix}{name}": value for name, value in row.items()}})

    def images(self, step: int, pictures: Sequence[tuple[str, Image.Image]]) -> None:
        """Keep captioned pictures for W&B.  Unlike rows, those that still wait when the process is killed are lost."""
        import wandb

        self._add(
            step, {"val/overlays": [wandb.Image(image, caption=caption) for caption, image in pictures]}
        )

    def hand_over(self, step: int) -> None:
        """Give W&B all that waits up to ``step``, which a checkpoint covers."""
        for at in sorted(at for at in self._waiting if at <= step):
            # Once for each step, and committed: its log then holds all of a step or nothing.
            self._run.log(self._waiting.pop(at), step=at, commit=True)
            self._given = at

    def upload(self, run: ObjectStore) -> None:
        """Copy what W&B has written since this start; the logs of earlier starts are the run's already."""
        folder = self._folder
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                # Its bytes as they are now: the log grows while it is open.
                key = f"{FOLDER}/{folder.name}/{path.relative_to(folder).as_posix()}"
                run.put(key, path.read_bytes())

    def finish(self, exit_code: int) -> None:
        """End W&B's part of this start; its log is whole afterwards."""
        self._run.finish(exit_code=exit_code)
        # W&B's process writes the rest when it has answered.  If it never does, the next start sees to it.
        logs = list(self._folder.glob("*.wandb"))
        deadline = time.monotonic() + _CLOSING_S
        while not all(read_end(log.read_bytes()).finished for log in logs) and time.monotonic() < deadline:
            time.sleep(0.05)

    @property
    def _folder(self) -> Path:
        return Path(self._run.dir).parent

    def _add(self, step: int, values: Mapping[str, Any]) -> None:
        if step > self._given:
            self._waiting[step] |= values


def open_wandb(config: Config, run: ObjectStore, workspace: Path, wandb_id: str) -> WandbRecord | None:
    """Begin or continue the W&B run; None when W&B is disabled."""
    if config.track.wandb == "disabled":
        return None
    given = _end_earlier_logs(run, wandb_id) if config.track.wandb == "offline" else 0
    wandb_run = begin_wandb(config, workspace, wandb_id, run.uri.rsplit("/", 1)[-1])
    for name in _BY_EPOCH:
        wandb_run.define_metric(name, step_metric="epoch")
    # The server says where it goes on; offline this is 0.
    return WandbRecord(wandb_run, max(given, wandb_run.starting_step - 1))


def begin_wandb(config: Config, workspace: Path, wandb_id: str, name: str) -> Any:
    """W&B's own run object, new or continued, as ``track`` says."""
    import wandb

    return wandb.init(
        id=wandb_id,
        resume="allow",
        mode=config.track.wandb,
        project=config.track.project,
        group=config.track.group,
        tags=list(config.track.tags) or None,
        name=name,
        job_type=config.track.job_type,
        config=config.model_dump(mode="json"),
        dir=workspace,
        # The record is of the experiment: no command line, console or host of whoever ran it.
        settings=wandb.Settings(
            console="off",
            silent=True,
            host="",
            x_disable_meta=True,
            x_save_requirements=False,
            x_transaction_log_flush_interval=1,
            # Its folders are named by the second, and those of several nodes come together in the run.
            x_sync_dir_suffix=uuid.uuid4().hex[:6],
            init_timeout=90,
        ),
    )


def _end_earlier_logs(run: ObjectStore, wandb_id: str) -> int:
    """The highest step in the logs of earlier starts, to which nothing is added from now on.

    The W&B process of a start that was killed may live a moment longer, and write.  Where a log has no end, its whole
    records take its place as a new file, and what still comes goes into the old one, which has no name any more.
    ``wandb sync`` would stop at a record cut short, and take no log at all beside one without a beginning.

    Raises:
        InputError: a log is of another format.
    """
    given = 0
    for entry in run.list(f"{FOLDER}/"):
        if not fnmatchcase(entry.key, f"{FOLDER}/*run-*/run-{wandb_id}.wandb"):
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
