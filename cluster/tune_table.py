"""How a search looks while it runs: a live table on a terminal, a line for each event elsewhere."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bts_dist.config import TuneConfig
from cluster import console
from cluster.tune_course import Watch, shown
from cluster.tune_ledger import METRIC, Trial, best_of

MOST_ROWS = 24
"""Trials shown at a time: those that run, and the best of the others."""

_BLOCKS = "▁▂▃▄▅▆▇█"
_STYLES = {"running": "cyan", "finished": "", "stopped": "dim", "failed": "red"}


@contextmanager
def follow_search(config: TuneConfig) -> Iterator[Watch]:
    """Show a search as it goes on."""
    if not console.out.is_terminal:
        yield lambda trials, event: console.out.print(f"  {event}", markup=False)
        return
    with Live(console=console.out, transient=True, auto_refresh=False, vertical_overflow="crop") as live:

        def update(trials: list[Trial], event: str) -> None:
            live.update(Group(table(config, trials), Text(f"  {event}", style="dim")), refresh=True)

        yield update


def table(config: TuneConfig, trials: Sequence[Trial]) -> Table:
    """The trials that run and the best of the others, and the budget below."""
    best = best_of(trials)
    result = Table(caption=budget(config, trials), caption_justify="left")
    for heading in ("trial", "settings", "epochs", METRIC, "by epoch", "status"):
        result.add_column(heading, overflow="fold")
    for trial in _chosen(trials):
        result.add_row(
            str(trial.number),
            shown(trial.values),
            f"{len(trial.scores)}/{config.epochs}",
            "" if trial.best is None else f"{trial.best:.4f}",
            sparkline(trial.scores),
            "best so far" if trial is best else trial.status,
            style="bold green" if trial is best else _STYLES[trial.status],
        )
    return result


def budget(config: TuneConfig, trials: Sequence[Trial]) -> str:
    """How much of the epochs asked for was trained, and how many were saved by stopping."""
    ended = [trial for trial in trials if trial.ended]
    trained = sum(len(trial.scores) for trial in trials)
    saved = sum(config.epochs - len(trial.scores) for trial in trials if trial.status == "stopped")
    asked = config.trials * config.epochs
    return (
        f"{len(ended)}/{config.trials} trials, {trained} of {asked} epochs trained, {saved} saved by stopping"
    )


def sparkline(scores: Sequence[float]) -> str:
    """Scores from 0 to 1 as blocks; what is no number is a space."""
    top = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round(min(1.0, max(0.0, s)) * top)] if s == s else " " for s in scores)


def _chosen(trials: Sequence[Trial]) -> list[Trial]:
    running = [trial for trial in trials if not trial.ended]
    others = sorted((t for t in trials if t.ended), key=lambda t: t.best or 0.0, reverse=True)
    return sorted([*running, *others][:MOST_ROWS], key=lambda trial: trial.number)
