"""Stopping trials early beside random search: the same recipe, space, seed and number of epochs, one after the other.

    python benchmarks/search.py --shards data/lgg-shards --runs runs/benchmark      # two hours on two cores

A search by ASHA comes first, and says what it trained. Random search then gets as many whole trials as that pays for,
rounded up. What ASHA's search found is confirmed with fresh seeds. Writes benchmarks/results/search.md. Given again,
the command goes on where it was.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environment import ROOT, describe
from steps import table

from bts_dist.compose import load_config
from bts_dist.run import open_run
from cluster.tune_confirmation import read_confirmation
from cluster.tune_confirmation import table as confirmation_table
from cluster.tune_ledger import METRIC
from cluster.tune_results import read_trials
from shards.store import MissingObject, ObjectStore

RESULT = Path(__file__).with_name("results") / "search.md"
CONFIGS = (ROOT / "configs" / "lgg-cpu.yaml", ROOT / "configs" / "lgg-cpu-search.yaml")

PACKAGES = ("torch", "ray", "optuna")
SPENT = "benchmark-seconds.json"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Searched:
    """A search as it ended."""

    name: str
    rows: Sequence[Row]
    wall_s: float
    """Of the command, over all calls until it was done."""

    @property
    def epochs(self) -> int:
        return sum(row["epochs"] for row in self.rows)

    @property
    def best(self) -> Row:
        return max(
            (row for row in self.rows if row["status"] != "failed"), key=lambda row: float(row[METRIC] or 0)
        )


def search(name: str, configs: Sequence[Path], sets: Sequence[str]) -> Searched:
    """Run ``bts tune`` as a user would, in a run of its own."""
    own = [*sets, f"run.name={name}"]
    options = [part for path in configs for part in ("--config", str(path))]
    options += [part for value in own for part in ("--set", value)]
    run = open_run(load_config(configs, own))
    done = bool(read_trials(run))
    began = time.monotonic()
    try:
        subprocess.run([sys.executable, "-m", "cluster.cli", "tune", *options], check=True)
    finally:
        if not done:
            run.put(SPENT, json.dumps(_spent(run) + time.monotonic() - began).encode())
    return Searched(name, read_trials(run), _spent(run))


def _spent(run: ObjectStore) -> float:
    try:
        return float(json.loads(run.get(SPENT)))
    except MissingObject:
        return 0.0


def page(asha: Searched, random: Searched, confirmed: Mapping[str, Any] | None, epochs: int) -> str:
    """The page of results."""
    own = next(row for row in asha.rows if row["trial"] == 0)
    searches = [
        (
            found.name,
            str(len(found.rows)),
            str(found.epochs),
            f"{found.wall_s / 60:.1f}",
            f"{found.best[METRIC]:.4f}",
            f"{found.best['trial']}",
        )
        for found in (asha, random)
    ]
    parts = [
        "# Search: stopping early beside random search",
        f"Config as it stands, {epochs} epochs: {METRIC} {own[METRIC]:.4f}, which is trial 0 of both.",
        table(("search", "trials", "epochs trained", "minutes", f"best {METRIC}", "its trial"), searches),
        "## Every trial",
        *(_trials(found) for found in (asha, random)),
    ]
    if confirmed is not None:
        interval = confirmed["interval"]
        parts += [
            "## Confirmation",
            f"Trial {confirmed['winner']} of {asha.name} and the config as it stands, each trained in full with seeds "
            f"{confirmed['seeds']} and scored once on {interval['patients']} test patients:",
            _markdown(confirmation_table(dict(confirmed))),
            f"The difference of {interval['metric']} has a 95 % interval over patients of {interval['low']:+.4f} to "
            f"{interval['high']:+.4f}.",
        ]
    return "\n\n".join([*parts, describe(PACKAGES)]) + "\n"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return table(rows[0], rows[1:])


def _trials(found: Searched) -> str:
    keys = [name for name in found.rows[0] if "." in name and "/" not in name]
    rows = [
        (
            str(row["trial"]),
            "; ".join(f"{key} {_short(row[key])}" for key in keys if row[key] is not None),
            " ".join(f"{score:.3f}" for score in row["scores"]),
            row["status"],
        )
        for row in found.rows
    ]
    return f"### {found.name}\n\n" + table(("trial", "settings", f"{METRIC} by epoch", "status"), rows)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", required=True)
    parser.add_argument("--runs", required=True)
    parser.add_argument("--config", type=Path, action="append", help="in place of the two of the LGG set")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--confirm", type=int, default=3)
    options = parser.parse_args()
    configs = options.config or CONFIGS
    sets = [f"data.shards={options.shards}", f"run.dir={options.runs}", *options.set]
    asha = search("asha", configs, sets)
    epochs = load_config(configs, sets).tune.epochs
    trials = math.ceil(asha.epochs / epochs)
    fifo = ["tune.search=random", "tune.scheduler=fifo", f"tune.trials={trials}"]
    random = search("random", configs, [*sets, *fifo])
    confirmed = None
    if options.confirm:
        own = [*sets, f"tune.confirm={options.confirm}"]
        search("asha", configs, own)
        confirmed = read_confirmation(open_run(load_config(configs, [*own, "run.name=asha"])))
    RESULT.write_text(page(asha, random, confirmed, epochs))


if __name__ == "__main__":
    main()
