"""The W&B run of what a command records beside a training: from its begin to its log's end."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bts_dist.config import Config
from bts_dist.lease import writing
from bts_dist.wandb_record import WandbRecord, end_earlier_logs
from bts_dist.wandb_session import Note, begin_wandb
from shards.store import LocalStore, ObjectStore


@contextmanager
def stage_run(
    config: Config,
    run: ObjectStore,
    folder: Path,
    wandb_id: str,
    name: str,
    note: Note = lambda _: None,
    *,
    reached: bool = True,
) -> Iterator[tuple[Any, int]]:
    """A W&B run that lies in ``run``, and the step to log at: one more each time that its work is done again.

    ``folder`` is the run's own if it is local, else any local one; ``note`` and ``reached`` are as for ``begin_wandb``.
    """
    with writing(run, wandb_id):
        given = end_earlier_logs(run, wandb_id)
        wandb_run = begin_wandb(config, folder, wandb_id, name, note, reached=reached)
        record = WandbRecord(wandb_run, 0, note=note)
        code = 1
        try:
            with record.guard():
                yield wandb_run, max(given, wandb_run.starting_step - 1) + 1
            code = 0
        finally:
            record.finish(exit_code=code)
            if not isinstance(run, LocalStore):
                record.upload(run)  # elsewhere its folder is the store
