"""Where a run's numbers go: a JSON-lines file always, Weights & Biases when asked for.

Only rank 0 tracks.  Rows carry explicit steps, and a resumed run drops the rows after the checkpoint it resumes
from, so that its record reads as one run.
"""

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from PIL import Image

from bts_dist.config import Config
from shards.store import AlreadyExists, LocalStore, MissingObject, ObjectStore

METRICS = "metrics.jsonl"
WANDB_ID = "wandb-id"

Row = Mapping[str, float | int]


class Tracker(AbstractContextManager["Tracker"], Protocol):
    def log(self, kind: str, step: int, row: Row) -> None:
        """Record metrics of one ``step`` or one ``epoch`` (``kind``) at a position in training."""

    def images(self, step: int, pictures: Sequence[tuple[str, Image.Image]]) -> None:
        """Record captioned pictures."""

    def note(self, step: int, text: str) -> None:
        """Record a sentence for people, such as which checkpoints were passed over."""

    def flush(self) -> None:
        """Make everything so far safe against the loss of this process."""


class NullTracker:
    """Tracks nothing: every rank but the first."""

    def log(self, kind: str, step: int, row: Row) -> None: ...
    def images(self, step: int, pictures: Sequence[tuple[str, Image.Image]]) -> None: ...
    def note(self, step: int, text: str) -> None: ...
    def flush(self) -> None: ...
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True)
class RunTracker:
    """The record of one training run: ``metrics.jsonl`` in the run's store, and a W&B run beside it."""

    run: ObjectStore
    workspace: Path
    wandb_run: Any | None

    def log(self, kind: str, step: int, row: Row) -> None:
        self._append(kind, step, row)
        if self.wandb_run is not None:
            self.wandb_run.log({f"{kind}/{k}" if kind == "step" else k: v for k, v in row.items()}, step=step)

    def images(self, step: int, pictures: Sequence[tuple[str, Image.Image]]) -> None:
        if self.wandb_run is not None and pictures:
            import wandb

            drawn = [wandb.Image(image, caption=caption) for caption, image in pictures]
            self.wandb_run.log({"val/overlays": drawn}, step=step)

    def note(self, step: int, text: str) -> None:
        self._append("note", step, {"text": text})

    def flush(self) -> None:
        if isinstance(self.run, LocalStore):
            return  # the workspace is the run
        self.run.put(METRICS, self.workspace / METRICS)
        if self.wandb_run is not None:
            self._upload_wandb(self.wandb_run.id)

    def _append(self, kind: str, step: int, row: Mapping[str, Any]) -> None:
        line = {"kind": kind, "step": step, "time": round(time.time(), 3), **row}
        with (self.workspace / METRICS).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.wandb_run is not None:
            self.wandb_run.finish(exit_code=0 if kind is None else 1)
        self.flush()

    def _upload_wandb(self, wandb_id: str) -> None:
        """Keep the offline record beside the run; W&B itself can only write to a local folder."""
        root = self.workspace / "wandb"
        for path in sorted(root.glob(f"*-{wandb_id}/**/*")):
            if path.is_file() and not path.is_symlink():
                # Its bytes as they are now: the log grows while it is open.
                self.run.put(f"wandb/{path.relative_to(root).as_posix()}", path.read_bytes())


def wandb_id(run: ObjectStore) -> str:
    """The W&B id of a run: drawn once and kept in the run, so that every attempt continues one W&B run."""
    with suppress(AlreadyExists):
        run.put(WANDB_ID, uuid.uuid4().hex[:12].encode(), if_absent=True)
    return run.get(WANDB_ID).decode()


def open_tracker(
    config: Config, run: ObjectStore, workspace: Path, *, step: int, wandb_id: str
) -> RunTracker:
    """Track a run from position ``step`` on; rows of an earlier attempt after it are dropped."""
    kept = [row for row in read_metrics(run) if row["step"] <= step] if step else []
    text = "".join(json.dumps(row) + "\n" for row in kept)
    # As a store, since that replaces the file in one go.
    LocalStore(str(workspace), workspace).put(METRICS, text.encode())
    name = run.uri.rsplit("/", 1)[-1]
    return RunTracker(run, workspace, _open_wandb(config, workspace, wandb_id, name))


def read_metrics(run: ObjectStore, kind: str | None = None) -> list[dict[str, Any]]:
    """Rows of a run's ``metrics.jsonl``, of one kind or of all; empty when there is none yet."""
    try:
        lines = run.get(METRICS).split(b"\n")
    except MissingObject:
        return []
    # What follows the last newline is nothing, or a row that a kill cut short.
    rows = [json.loads(line) for line in lines[:-1]]
    return [row for row in rows if kind in (None, row["kind"])]


def _open_wandb(config: Config, workspace: Path, wandb_id: str, name: str) -> Any | None:
    if config.track.wandb == "disabled":
        return None
    import wandb

    return wandb.init(
        id=wandb_id,
        resume="allow",
        mode=config.track.wandb,
        project=config.track.project,
        name=name,
        job_type="train",
        config=config.model_dump(mode="json"),
        dir=workspace,
        # The record is of the experiment: no command line, console or host of whoever ran it.
        settings=wandb.Settings(
            console="off",
            silent=True,
            x_disable_meta=True,
            x_save_requirements=False,
            x_transaction_log_flush_interval=1,
            init_timeout=30,
        ),
    )
