"""Where a search stands, and what happens next: the part of it that knows no Ray.

The command alone decides; a trial's own process writes down only how it failed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from bts_dist.config import Config
from cluster.tune_ledger import METRIC, Ledger, Status, Trial
from cluster.tune_rungs import Rungs, replay
from cluster.tune_search import Searcher


class Watch(Protocol):
    """Is told what happens in a search."""

    def __call__(self, trials: list[Trial], event: str) -> None: ...


@dataclass
class Course:
    """Where a search stands; the driver's side, which alone decides."""

    config: Config
    ledger: Ledger
    searcher: Searcher
    limit: int
    """Most trials side by side."""
    watch: Watch
    trials: dict[int, Trial] = field(default_factory=dict)
    waiting: list[int] = field(default_factory=list)
    """Interrupted trials that are to resume."""
    running: set[int] = field(default_factory=set)
    rungs: Rungs = field(init=False)
    seen: dict[int, int] = field(default_factory=dict)
    """The last epoch that each trial told in this course."""

    def load(self) -> None:
        """Take up what earlier commands left."""
        known = self.ledger.trials(self.config.tune.trials)
        self.trials = {trial.number: trial for trial in known}
        self.rungs = replay(self.config.tune, {trial.number: trial.scores for trial in known})
        for trial in known:
            if trial.final:
                continue
            if trial.ended:
                self.ledger.reopen(trial.number)
                self.trials[trial.number] = replace(trial, status="running", error=None)
            epoch = len(trial.scores)
            if epoch >= self.config.tune.epochs:
                self._end(trial.number, "finished")
            elif not self.rungs.goes_on(trial.number, epoch):
                self._end(trial.number, "stopped")
            else:
                self.waiting.append(trial.number)
        if known:
            ended = len(known) - len(self.waiting)
            self._tell(f"going on: {ended} trials have ended, {len(self.waiting)} resume")

    def wants_more(self) -> bool:
        """Whether a trial is left to start."""
        return bool(self.waiting) or self._propose(write=False)

    def next(self) -> int | None:
        """The number of the next trial to start, or None when there is none."""
        if self.waiting:
            number = self.waiting.pop(0)
            self._tell(f"trial {number} resumes after epoch {len(self.trials[number].scores)}")
        elif self._propose(write=True):
            number = len(self.trials) - 1
            self._tell(f"trial {number} starts: {shown(self.trials[number].values)}")
        else:
            return None
        self.running.add(number)
        return number

    def reported(self, number: int, row: Mapping[str, Any]) -> bool:
        """Take in an epoch of a trial, as its record has it; whether it may go on."""
        epoch, score = int(row["epoch"]), float(row[METRIC])
        if epoch <= self.seen.get(number, 0) or number not in self.running:
            return True  # Tune tells the last report again when a trial ends
        self.seen[number] = epoch
        self.trials[number] = self.trials[number].with_epoch(row)
        self.rungs.record(number, epoch, score)
        self._tell(f"trial {number}: epoch {epoch}/{self.config.tune.epochs}, {METRIC} {score:.4f}")
        if self.rungs.goes_on(number, epoch):
            return True
        self._end(number, "stopped")
        self._tell(f"trial {number} is stopped after epoch {epoch}")
        return False

    def ended(self, number: int, *, failed: bool) -> None:
        """A trial's process is gone."""
        self.running.discard(number)
        if self.trials[number].ended:
            return
        written = self.ledger.trial(number)
        if written.status == "failed":
            self.trials[number] = written
        elif failed:
            self._fail(number, "its process was lost")
        else:
            self._end(number, "finished")
        trial = self.trials[number]
        self._tell(f"trial {number} {trial.status}" + (f": {trial.error}" if trial.error else ""))

    def _propose(self, *, write: bool) -> bool:
        number = len(self.trials)
        if number >= self.config.tune.trials:
            return False
        values = self.searcher.propose(number, list(self.trials.values()))
        if values is not None and write:
            self.ledger.propose(number, values)
            self.trials[number] = Trial(number, values)
        return values is not None

    def _fail(self, number: int, error: str) -> None:
        self.ledger.conclude(number, "failed", error, final=False)
        self.trials[number] = replace(self.trials[number], status="failed", error=error, final=False)

    def _end(self, number: int, status: Status) -> None:
        self.ledger.conclude(number, status)
        self.trials[number] = replace(self.trials[number], status=status, final=True)

    def _tell(self, event: str) -> None:
        self.watch(list(self.trials.values()), event)


def shown(values: Any) -> str:
    """A trial's values in a line."""
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
