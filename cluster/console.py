"""How commands speak to people: progress bars on a terminal, plain lines elsewhere, tables and next steps."""

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bts_dist.account import TRAINING
from bts_dist.flops import format_flops
from cluster.live_record import LiveRecord
from cluster.pace import Pace

PLAIN_WIDTH = 400
"""Widest table where no terminal sets a width: a file name is never cut in two there."""

# Of torchrun's processes only the first speaks.
_QUIET = os.environ.get("RANK", "0") != "0"
out = Console(
    highlight=False, soft_wrap=True, quiet=_QUIET, width=None if sys.stdout.isatty() else PLAIN_WIDTH
)
err = Console(stderr=True, highlight=False, soft_wrap=True)

_IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
"""Whether this is a job's own process: the next command is given elsewhere, with another config."""

STRAGGLER_SHOWN = 0.05
"""Share of the time lost to a slow rank from which on it is named."""

PLAIN_EVERY_S = 10.0
"""Seconds between two progress lines where there is no terminal."""


class Update(Protocol):
    def __call__(self, done: int, total: int, note: str = "", *, num_bytes: int = 0) -> None: ...


@contextmanager
def progress(title: str, unit: str = "") -> Iterator[Update]:
    """Show how far a long piece of work has come.

    With a ``unit``, the name of what is counted, also how fast, in units and in the bytes that are reported.
    """
    pace = Pace(unit, time.monotonic()) if unit else None
    if not out.is_terminal:
        yield _plain_progress(title, pace)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=out, transient=True) as bars:
        bar = bars.add_task(title, total=None, note="")

        def update(done: int, total: int, note: str = "", *, num_bytes: int = 0) -> None:
            if pace is not None:
                pace.add(time.monotonic(), done, num_bytes)
                note = ", ".join([*pace.rates(), *([note] if note else [])])
            bars.update(bar, completed=done, total=total, note=note)

        yield update


def _plain_progress(title: str, pace: Pace | None) -> Update:
    last = time.monotonic()

    def update(done: int, total: int, note: str = "", *, num_bytes: int = 0) -> None:
        nonlocal last
        now = time.monotonic()
        if pace is not None:
            pace.add(now, done, num_bytes)
        if done >= total or now - last >= PLAIN_EVERY_S:
            out.print(_line(f"{title}: {done}/{total}", total, pace, note))
            last = now

    return update


def _line(counts: str, total: int, pace: Pace | None, note: str) -> str:
    if pace is None:
        return f"{counts} {note}".rstrip()
    parts = [f"{counts} {pace.unit}", *pace.rates(), pace.left(total), note]
    return ", ".join(part for part in parts if part)


def show_table(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Print rows below a row of headings."""
    headings, *body = rows
    out.print(title)
    table = Table()
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in body:
        table.add_row(*row)
    out.print(table, soft_wrap=False)


def stage(name: str, text: str) -> None:
    out.print(f"[bold]{name}[/bold] ", escape(text))


def next_step(command: str) -> None:
    if not _IN_JOB:
        out.print(f"  next: [cyan]{escape(command)}[/cyan]")


@contextmanager
def follow_training(record: LiveRecord, title: str, epochs: int) -> Iterator[None]:
    """Show a training run's own record as it grows, wherever its workers are."""
    stop = threading.Event()
    thread = threading.Thread(target=_follow, args=(record, title, epochs, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _follow(record: LiveRecord, title: str, epochs: int, stop: threading.Event) -> None:
    with progress(title) as update:
        ended = False
        while not ended:
            ended = stop.wait(0.5)
            for row in record.new_rows(last=ended):
                _show_row(row, epochs, update)


def _show_row(row: dict[str, Any], epochs: int, update: Update) -> None:
    match row["kind"]:
        case "note":
            out.print(f"  {row['text']}")
        case "step":
            note = f"epoch {row['epoch']:.2f}  loss {row['loss']:.4f}  {row['samples_per_s']:.1f} slices/s"
            update(min(int(row["epoch"] * 100), epochs * 100 - 1), epochs * 100, note)
        case "epoch":
            out.print(
                f"  epoch {row['epoch']}/{epochs}  loss {row['train/loss']:.4f}  "
                f"val dice/patient {row['val/dice/patient']:.4f}  dice/slice {row['val/dice/slice']:.4f}  "
                f"{row['samples_per_s']:.1f} slices/s  lr {row['lr']:.2g}"
            )
            out.print(f"    [dim]{account_line(row)}[/dim]")


def account_line(row: dict[str, Any]) -> str:
    """An epoch's account in one line: where the time went, and how fast the devices worked."""
    shares = {activity: f"{activity} {row[f'share/{activity}']:.0%}" for activity in TRAINING}
    if row["straggler/wait"] >= STRAGGLER_SHOWN:
        shares["exchange"] += f" ({row['straggler/wait']:.0%} waiting for rank {row['straggler/rank']})"
    speed = f"{format_flops(row['flops_per_s'])}/s ({row['mfu']:.1%} of peak)"
    return "  ".join([*shares.values(), speed])
