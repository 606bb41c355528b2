"""What a search has proposed and found, kept in the run so that the same command goes on with it.

A proposal is written before its trial starts, and a result when it ended; each is a file of its own, put whole.  A
trial with a proposal and no result was interrupted: it is started again and goes on from its own checkpoints, since
its run bears its number.  What it has validated so far is read from its own record.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from bts_dist.compose import config_hash, with_overrides
from bts_dist.config import Config
from bts_dist.run import run_uri, training_recipe
from bts_dist.track import read_metrics
from shards.config import StoreConfig
from shards.store import AlreadyExists, MissingObject, ObjectStore, join_uri, open_store

METRIC = "val/dice/patient"
FOLDER = "tune"

Status = Literal["running", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Trial:
    """One trial as far as it is known."""

    number: int
    values: Mapping[str, Any]
    """Dotted config keys to what was proposed."""
    status: Status = "running"
    scores: tuple[float, ...] = ()
    """``val/dice/patient`` by epoch."""
    seconds: float = 0.0
    """Time of its epochs, training and validation."""
    flops: int | None = None
    """Operations to train on a slice; None until an epoch is done."""
    error: str | None = None
    final: bool = False
    """Whether no later command may take it up again."""

    def with_epoch(self, row: Mapping[str, Any]) -> "Trial":
        """The trial after an epoch, as its record tells it; one that was done again takes its place."""
        epoch = int(row["epoch"])
        again = len(self.scores) >= epoch
        return replace(
            self,
            scores=(*self.scores[: epoch - 1], float(row[METRIC])),
            seconds=self.seconds if again else self.seconds + float(row["time/epoch_s"]),
            flops=round(float(row["flops_per_s"]) / float(row["samples_per_s"])),
        )

    def cost(self, kind: Literal["flops", "seconds"]) -> float | None:
        """As ``tune.cost`` says; None until an epoch is done."""
        if not self.scores:
            return None
        return self.flops if kind == "flops" else self.seconds / len(self.scores)

    @property
    def best(self) -> float | None:
        return max(self.scores, default=None)

    @property
    def ended(self) -> bool:
        return self.status != "running"


@dataclass(frozen=True)
class Ledger:
    """The trials of one search, under ``tune/<hash>/`` of its run."""

    place: str
    """Location of the search."""
    store_config: StoreConfig

    @property
    def group(self) -> str:
        """What W&B puts the search's runs under: the run's name and the search's hash."""
        return "-".join(self.place.split("/")[-3::2])

    def propose(self, number: int, values: Mapping[str, Any]) -> None:
        """Write down a proposal, before its trial starts."""
        # What is there already stays: a trial is what was proposed first.
        try:
            self.store.put(_key("proposals", number), json.dumps(dict(values)).encode(), if_absent=True)
        except AlreadyExists:
            return

    def conclude(self, number: int, status: Status, error: str | None = None, *, final: bool = True) -> None:
        """Write down how a trial ended; one that is not ``final`` is taken up again by the next command."""
        result = {"status": status, "error": error, "final": final}
        self.store.put(_key("results", number), json.dumps(result).encode())

    def reopen(self, number: int) -> None:
        """Take back how a trial ended."""
        self.store.delete(_key("results", number))

    def trials(self, most: int) -> list[Trial]:
        """Every trial that was proposed, in order, of the first ``most``."""
        entries = self.store.list("proposals/")
        numbers = (int(entry.key.rpartition("/")[2].partition(".")[0]) for entry in entries)
        return [self.trial(number) for number in numbers if number < most]

    def trial(self, number: int) -> Trial:
        """What is known of a trial that was proposed."""
        values = json.loads(self.store.get(_key("proposals", number)))
        rows = read_metrics(open_store(self.trial_place(number), self.store_config), "epoch")
        trial = Trial(number, values)
        for row in sorted(rows, key=lambda row: int(row["epoch"])):
            trial = trial.with_epoch(row)
        try:
            return replace(trial, **json.loads(self.store.get(_key("results", number))))
        except MissingObject:
            return trial

    def trial_place(self, number: int) -> str:
        """Where a trial's own run lies."""
        return join_uri(self.place, "trials", trial_name(number))

    @property
    def store(self) -> ObjectStore:
        return open_store(self.place, self.store_config)


def open_ledger(config: Config, data_id: str) -> Ledger:
    """The ledger of ``config``'s search: the same for the same settings and data, however many trials are asked for."""
    return Ledger(join_uri(run_uri(config), FOLDER, search_id(config, data_id)), config.store)


def search_id(config: Config, data_id: str) -> str:
    """Hash of all that decides what a search proposes and what its trials give."""
    asked = config.tune.model_dump(mode="json")
    for name in ("trials", "concurrent", "confirm"):
        del asked[name]
    recipe = {**training_recipe(config), "tune": asked, "data_id": data_id, "workers": config.cluster.fewest}
    # How long the recipe itself trains is no matter of its trials.
    recipe["train"] = {name: value for name, value in recipe["train"].items() if name != "epochs"}
    return config_hash(recipe, length=12)


def trial_name(number: int) -> str:
    return f"{number:04d}"


def trial_config(config: Config, ledger: Ledger, trial: Trial) -> Config:
    """The config of one trial: what was proposed, the search's epochs, and a place in the search's folder."""
    fixed = {
        "train.epochs": config.tune.epochs,
        "run.dir": join_uri(ledger.place, "trials"),
        "run.name": trial_name(trial.number),
        "tune.trials": 0,
        # The searches' trials share the cluster: each takes the fewest workers, which gives the same model.
        "cluster.workers": config.cluster.fewest,
        "track.group": ledger.group,
        "track.job_type": "trial",
    }
    return with_overrides(config, {**trial.values, **fixed})


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The trial of the highest score in any epoch, the first of equals."""
    scored = [trial for trial in trials if trial.scores and trial.status != "failed"]
    return max(scored, key=lambda trial: (trial.best or 0.0, -trial.number), default=None)


def pareto(trials: Sequence[Trial], cost: Literal["flops", "seconds"]) -> set[int]:
    """Numbers of the trials that no other beats: none is as good in score and cost, and better in one."""
    points = {trial.number: (trial.best, trial.cost(cost)) for trial in trials if trial.status != "failed"}
    known = {
        n: (score, price) for n, (score, price) in points.items() if score is not None and price is not None
    }
    return {
        n
        for n, (score, price) in known.items()
        if not any(s >= score and p <= price and (s, p) != (score, price) for s, p in known.values())
    }


def _key(kind: str, number: int) -> str:
    return f"{kind}/{number:06d}.json"
