"""W&B's own run object: what it may tell of a run, and what is done where the server does not answer.

The record is of the experiment.  W&B by itself would add who ran it, where and how: user, host, program,
command line, packages, git remote, console.  All of that is off.
"""

import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from bts_dist.commit import code_commit
from bts_dist.config import Config
from bts_dist.wandb_login import LoginError, check_login, load_settings
from bts_dist.wandb_process import leave, limited, process_errors, said
from shards.errors import InputError

# No reports of errors to W&B either, whose text may say anything.  It reads this when it is imported.
os.environ["WANDB_ERROR_REPORTING"] = "false"

Note = Callable[[str], None]

START_S = 3.0
"""How long a start waits for the server, all in all."""
_LOGIN_S = 2.0
_BEGIN_S = 0.5
"""The least that W&B's process is given to begin a run: to it, 0 is no limit."""
FINISH_S = 60.0
"""How long an end waits for the upload of the rest; what is left stays on disk."""


def begin_wandb(
    config: Config,
    workspace: Path,
    wandb_id: str,
    name: str,
    note: Note = lambda _: None,
    *,
    reached: bool = True,
) -> Any:
    """W&B's run object, new or continued, as ``track`` says.

    Where a live record is not to be had within a few seconds it is an offline one, and ``note`` is told why.  With
    ``reached`` False somebody has just found that, and nobody is asked or told again.

    Raises:
        InputError: a setting of W&B's is not valid.
    """
    _start_process()  # before the clock: that is no wait for the server
    errors: tuple[type[Exception], ...] = (*process_errors(), TimeoutError)
    if config.track.wandb == "online" and reached:
        began, suffix = time.monotonic(), _suffix()
        try:
            check_login(_LOGIN_S)
            left = max(_BEGIN_S, START_S - (time.monotonic() - began))
            return _begin(config, workspace, wandb_id, name, "online", left, suffix)
        except LoginError as error:
            trouble = str(error)
        except errors as error:
            trouble = said(error)
            leave()
            # It holds no row, and `bts sync` is to find no log that is cut short.
            for begun in workspace.glob(f"wandb/run-*-{wandb_id}-{suffix}"):
                shutil.rmtree(begun, ignore_errors=True)
        note(f"W&B: {trouble}; recording offline, `bts sync` uploads it later")
    try:
        return _begin(config, workspace, wandb_id, name, "offline", START_S, _suffix())
    except errors:  # it ended with an earlier record of this process; there will be a new one
        leave()
        return _begin(config, workspace, wandb_id, name, "offline", START_S, _suffix())


def _start_process() -> None:
    """Start W&B's process if there is none.

    Raises:
        InputError: a setting of W&B's is not valid.
    """
    try:
        load_settings()
    except LoginError as error:
        raise InputError(f"{error}; or set track.wandb=disabled") from error


def _suffix() -> str:
    """Of a start's folder: W&B names these by the second, and those of several nodes come together in the run."""
    return uuid.uuid4().hex[:6]


def table_file(wandb_run: Any, name: str, table: Any, step: int) -> dict[str, Any]:
    """W&B's table as a file of the run, to be logged under ``name``.

    Logged as it is, W&B keeps it a second time as an artifact whose file lies in the home folder of whoever ran this:
    outside of the run, and gone when the record is uploaded from elsewhere.
    """
    table.bind_to_run(wandb_run, name, step)
    value: dict[str, Any] = table.to_json(wandb_run)
    return value


def _begin(
    config: Config,
    workspace: Path,
    wandb_id: str,
    name: str,
    mode: Literal["online", "offline"],
    init_timeout_s: float,
    suffix: str,
) -> Any:
    import wandb

    _start_process()  # there is none after ``leave``
    with limited(init_timeout_s):
        return wandb.init(
            id=wandb_id,
            resume="allow",
            mode=mode,
            project=config.track.project,
            group=config.track.group or config.run.name,
            tags=list(config.track.tags) or None,
            name=name,
            job_type=config.track.job_type,
            config=config.model_dump(mode="json"),
            dir=workspace,
            settings=wandb.Settings(
                console="off",
                silent=True,
                host="",
                program="",
                username="",
                email="",
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
                save_code=False,
                disable_code=True,
                disable_git=True,
                git_commit=code_commit(),
                x_transaction_log_flush_interval=1,
                x_sync_dir_suffix=suffix,
                init_timeout=init_timeout_s,
                finish_timeout=FINISH_S,
                finish_timeout_raises=True,
            ),
        )
