"""What W&B is told of a search, beside a run for each trial: a run of the search itself, and which trial is the best.

All are of one group, also offline; ``wandb sync`` brings them together.
"""

from collections.abc import Sequence
from pathlib import Path

from bts_dist.charts import Row
from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.run import open_run, workspace
from bts_dist.track import wandb_id
from bts_dist.wandb_process import limited
from bts_dist.wandb_session import Note, table_file
from bts_dist.wandb_stage_run import stage_run
from shards.store import ObjectStore

BEST = "best"
"""Tag of the best trial's run."""


def record_search(
    config: Config,
    search: ObjectStore,
    folder: Path,
    rows: Sequence[Row],
    best: int,
    note: Note = lambda _: None,
) -> bool:
    """Give W&B the table of all trials and the best one's number; whether it has a live record of them.

    ``config`` is the searched one with the search's ``track.group``, ``search`` the place where it keeps its own W&B
    id and logs, ``folder`` a local folder for them.  ``note`` is told if the record is offline unasked.
    """
    if config.track.wandb == "disabled":
        return False
    import wandb

    own = with_overrides(config, {"track.job_type": "tune"})
    columns = [name for name in rows[0] if name not in ("scores", "error")]
    # As text where a column has several types, which a table of W&B's refuses.
    data = [[_cell(row[name]) for name in columns] for row in rows]
    table = wandb.Table(columns=columns, data=data, allow_mixed_types=True)
    winner = next(row for row in rows if row["trial"] == best)
    name = str(config.track.group)
    with stage_run(own, search, folder, wandb_id(search), name, note) as (run, step), limited():
        run.log({"trials": table_file(run, "trials", table, step)}, step=step)
        run.summary.update({f"best/{column}": winner[column] for column in columns})
    return not run.offline


def mark_best(trial: Config, note: Note = lambda _: None, *, reached: bool = True) -> None:
    """Tag the run of the best trial, whose config this is, and say so in its summary.

    With ``reached`` False W&B was just found out of reach: it is not asked again, for that takes seconds.  ``note`` is
    told if W&B's process ends too early.
    """
    if trial.track.wandb == "disabled":
        return
    store = open_run(trial)
    tagged = with_overrides(trial, {"track.tags": [*trial.track.tags, BEST]})
    name = str(trial.run.name)
    folder = workspace(store, trial)
    with (
        stage_run(tagged, store, folder, wandb_id(store), name, note, reached=reached) as (run, _),
        limited(),
    ):
        run.summary["search/best"] = True


def _cell(value: object) -> object:
    return value if isinstance(value, int | float | str | None) else str(value)
