"""What a search leaves: ``trials.parquet`` for programs, a row for each trial, and a page for people."""

import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bts_dist.config import Config, TuneConfig
from bts_dist.search_report import SearchRecord, write_search_page
from cluster.tune_importance import METHOD, importance
from cluster.tune_ledger import FOLDER, METRIC, Trial, best_of, pareto
from cluster.tune_rungs import bracket_of, replay
from cluster.tune_search import Searcher
from cluster.tune_space import Real
from shards.store import MissingObject, ObjectStore

TRIALS = f"{FOLDER}/trials.parquet"
PAGE = f"{FOLDER}/search.html"

COSTS = {"flops": "operations to train on a slice", "seconds": "seconds an epoch takes"}

DETAILS = ("bracket", "seconds", "flops", "error", "scores")
"""Columns behind the settings and the result, left out of short tables."""


def search_rows(config: TuneConfig, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """A row for each trial: its number, its settings, its result; the same columns in all."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.values))
    front = set() if config.cost is None else pareto(trials, config.cost)
    return [
        {
            "trial": trial.number,
            **{key: trial.values.get(key) for key in keys},
            METRIC: trial.best,
            **(
                {}
                if config.cost is None
                else {"cost": trial.cost(config.cost), "pareto": trial.number in front}
            ),
            "epochs": len(trial.scores),
            "status": trial.status,
            "bracket": bracket_of(config, trial.number),
            "seconds": round(trial.seconds, 3),
            "flops": trial.flops,
            "error": trial.error,
            "scores": list(trial.scores),
        }
        for trial in trials
    ]


def write_trials(run: ObjectStore, rows: Sequence[dict[str, Any]]) -> None:
    """Put ``trials.parquet``.  A setting whose values are of several types is a column of JSON texts."""
    columns = {name: _column(name, [row[name] for row in rows]) for name in rows[0]}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    run.put(TRIALS, buffer.getvalue())


def read_trials(run: ObjectStore) -> list[dict[str, Any]]:
    """The rows of a run's search; none if it had no search."""
    try:
        data = run.get(TRIALS)
    except MissingObject:
        return []
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(data)).to_pylist()
    return rows


def short(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without their details."""
    return [{name: value for name, value in row.items() if name not in DETAILS} for row in rows]


def _column(name: str, values: list[Any]) -> Any:
    match name:
        case "scores":
            return pa.array(values, pa.list_(pa.float64()))
        case "error":
            return pa.array(values, pa.string())
    types = {type(value) for value in values if value is not None}
    if types in ({int, float}, {float, int}):
        return pa.array(values, pa.float64())
    if len(types) <= 1 and types <= {bool, int, float, str}:
        return pa.array(values)
    return pa.array([json.dumps(value) for value in values])


def write_page(
    run: ObjectStore,
    config: Config,
    searcher: Searcher,
    trials: Sequence[Trial],
    best: str,
    confirmation: dict[str, Any] | None = None,
) -> None:
    """Put the search's page; ``best`` is ``best.yaml``."""
    tune = config.tune
    winner = best_of(trials)
    assert winner is not None
    rows = search_rows(tune, trials)
    record = SearchRecord(
        name=run.uri.rstrip("/").rsplit("/", 1)[-1],
        how=f"{len(trials)} trials, searcher {tune.search}, scheduler {tune.scheduler}, seed {tune.seed}",
        result=METRIC,
        # What only the config as it stands has, the space does not draw.
        keys=[key for key in rows[0] if any(key in trial.values for trial in trials[1:] or trials)],
        logs=frozenset(k for k, node in searcher.space.nodes.items() if isinstance(node, Real) and node.log),
        epochs=tune.epochs,
        rows=rows,
        best=winner.number,
        rungs=rung_rows(tune, trials),
        importance=importance(searcher.space, trials),
        method=METHOD,
        best_yaml=best,
        cost=None if tune.cost is None else COSTS[tune.cost],
        confirmation=confirmation,
    )
    with tempfile.TemporaryDirectory() as scratch:
        run.put(PAGE, write_search_page(record, Path(scratch) / "search.html").read_bytes())


def rung_rows(config: TuneConfig, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Each rung that trials came to, and who went on: those with a later epoch, or not stopped at all."""
    state = replay(config, {trial.number: trial.scores for trial in trials})
    by_number = {trial.number: trial for trial in trials}
    found = []
    for (bracket, epoch), scores in sorted(state.reached.items()):
        stopped = {
            n for n in scores if by_number[n].status == "stopped" and len(by_number[n].scores) == epoch
        }
        found.append(
            {
                "bracket": bracket if config.scheduler == "hyperband" else None,
                "epoch": epoch,
                "trials": [
                    (number, score, number not in stopped) for number, score in sorted(scores.items())
                ],
            }
        )
    return found
