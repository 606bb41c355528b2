"""Where a run's numbers go: a JSON-lines file always, Weights & Biases when asked for.

Only rank 0 tracks.  Rows carry explicit steps, and a resumed run drops the rows after the checkpoint it resumes
from, so that its record reads as one run.  So does W&B's, which lags by a checkpoint (``wandb_record``).
"""

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from bts_dist.attempt import FencedError
from bts_dist.config import Config
from bts_dist.overlays import SliceOverlay
from bts_dist.wandb_artifacts import DataReference, ModelReference
from bts_dist.wandb_record import WandbRecord, open_wandb
from shards.store import AlreadyExists, LocalStore, MissingObject, ObjectStore

METRICS = "metrics.jsonl"
WANDB_ID = "wandb-id"

Row = Mapping[str, float | int | str]


class Tracker(AbstractContextManager["Tracker"], Protocol):
    def log(self, kind: str, step: int, row: Row) -> None:
        """Record metrics of one ``step`` or one ``epoch`` (``kind``) at a position in training."""

    def images(self, step: int, pictures: Sequence[SliceOverlay]) -> None:
        """Record pictures of slices."""

    def lineage(self, data: DataReference, models: Mapping[str, ModelReference]) -> None:
        """Record what was trained on, and which models came of it, by alias."""

    def note(self, step: int, text: str) -> None:
        """Record a sentence for people, such as which checkpoints were passed over."""

    def flush(self) -> None:
        """Make everything so far safe against the loss of this process."""


class NullTracker:
    """Tracks nothing: every rank but the first."""

    def log(self, kind: str, step: int, row: Row) -> None: ...
    def images(self, step: int, pictures: Sequence[SliceOverlay]) -> None: ...
    def lineage(self, data: DataReference, models: Mapping[str, ModelReference]) -> None: ...
    def note(self, step: int, text: str) -> None: ...
    def flush(self) -> None: ...
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass
class RunTracker:
    """The record of one training run: ``metrics.jsonl`` in the run's store, and a W&B run beside it."""

    run: ObjectStore
    workspace: Path
    published: Callable[[], int]
    """Step of the newest checkpoint of this start, 0 before the first: rows up to it can go to W&B."""
    step: int
    """Of the newest row."""
    wandb: WandbRecord | None = None

    def log(self, kind: str, step: int, row: Row) -> None:
        at_s = self._append(kind, step, row)
        if self.wandb is not None:
            self.wandb.row(kind, step, at_s, row)
            self.wandb.hand_over(self.published())

    def images(self, step: int, pictures: Sequence[SliceOverlay]) -> None:
        if self.wandb is not None and pictures:
            self.wandb.images(step, pictures)

    def lineage(self, data: DataReference, models: Mapping[str, ModelReference]) -> None:
        if self.wandb is not None:
            self.wandb.lineage(data, models)

    def note(self, step: int, text: str) -> None:
        self._append("note", step, {"text": text})

    def note_now(self, text: str) -> None:
        """Record a sentence where the record has come to."""
        self.note(self.step, text)

    def flush(self) -> None:
        if isinstance(self.run, LocalStore):
            return  # the workspace is the run
        self.run.put(METRICS, self.workspace / METRICS)
        if self.wandb is not None:
            self.wandb.upload(self.run)

    def _append(self, kind: str, step: int, row: Mapping[str, Any]) -> float:
        """Write a row, and give the time that it bears."""
        now = round(time.time(), 3)
        self.step = step
        with (self.workspace / METRICS).open("a") as file:
            file.write(json.dumps({"kind": kind, "step": step, "time": now, **row}) + "\n")
        return now

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.wandb is not None:
                # Also after an error: what no checkpoint covers, a later start does again.
                self.wandb.hand_over(self.published())
                self.wandb.finish(exit_code=0 if kind is None else 1)
        finally:
            if not isinstance(error, FencedError):  # the record is another attempt's then
                self.flush()


def wandb_id(run: ObjectStore) -> str:
    """The W&B id of a run: drawn once and kept in the run, so that every attempt continues one W&B run."""
    with suppress(AlreadyExists):
        run.put(WANDB_ID, uuid.uuid4().hex[:12].encode(), if_absent=True)
    return run.get(WANDB_ID).decode()


def open_tracker(
    config: Config,
    run: ObjectStore,
    workspace: Path,
    *,
    step: int,
    wandb_id: str,
    published: Callable[[], int],
) -> RunTracker:
    """Track a run from the checkpoint of ``step`` on, 0 for none; rows of an earlier start after it are dropped.

    ``published`` is asked for the step of the newest checkpoint that this start has published.
    """
    kept = [row for row in read_metrics(run) if 0 < step >= row["step"] or row["kind"] == "recovery"]
    lines = "".join(json.dumps(row) + "\n" for row in kept)
    # As a store, since that replaces the file in one go.
    LocalStore(str(workspace), workspace).put(METRICS, lines.encode())
    tracker = RunTracker(run, workspace, published, step)
    tracker.wandb = open_wandb(config, run, workspace, wandb_id, tracker.note_now)
    if tracker.wandb is not None:
        _catch_up(tracker.wandb, kept, step)
    return tracker


def _catch_up(wandb: WandbRecord, rows: Sequence[Mapping[str, Any]], step: int) -> None:
    """Give W&B what earlier starts could not hand over any more of the ``rows`` up to ``step``."""
    for row in rows:
        if row["kind"] != "note":
            values = {name: value for name, value in row.items() if name not in ("kind", "step", "time")}
            wandb.row(row["kind"], row["step"], row["time"], values)
    wandb.hand_over(step)


def read_metrics(run: ObjectStore, kind: str | None = None) -> list[dict[str, Any]]:
    """Rows of a run's ``metrics.jsonl``, of one kind or of all; empty when there is none yet."""
    try:
        lines = run.get(METRICS).split(b"\n")
    except MissingObject:
        return []
    # What follows the last newline is nothing, or a row that a kill cut short.
    rows = [json.loads(line) for line in lines[:-1]]
    return [row for row in rows if kind in (None, row["kind"])]
