"""A search on one self-contained HTML page: what was tried, what it cost, and what mattered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bts_dist.charts import Row, is_number
from bts_dist.plot import Dot, dot_plot, strip_plot
from bts_dist.report import page_template
from bts_dist.search_charts import bars, learning_curves, parallel_coordinates, rung_chart

_OPEN = "these patients do not tell the two apart"


@dataclass(frozen=True)
class SearchRecord:
    """What a search left behind."""

    name: str
    how: str
    """Searcher, scheduler and seed in a few words."""
    result: str
    """The column of the result."""
    keys: Sequence[str]
    """Columns of the settings."""
    logs: frozenset[str]
    """Settings that are drawn by their logarithm."""
    epochs: int
    """Epochs asked of each trial."""
    rows: Sequence[Row]
    """A row a trial: ``trial``, the settings, the result, ``epochs``, ``status``, ``seconds``, ``scores`` and
    ``error``."""
    best: int
    """Number of the best trial."""
    rungs: Sequence[Mapping[str, Any]]
    """``bracket``, ``epoch`` and ``trials``: number, score, and whether it went on."""
    importance: Mapping[str, float]
    """Share of each setting in what makes a trial one of the best; empty when it cannot be told."""
    method: str
    """How the importance was found."""
    best_yaml: str
    cost: str | None = None
    """What the column ``cost`` is, where it was weighed against the result; ``pareto`` says which rows no other beats
    in both."""
    confirmation: Mapping[str, Any] | None = None
    """Best config and config as it stands, trained with fresh seeds and scored on test patients: ``seeds``, ``runs``
    (``arm``, ``trial``, ``seed`` and metrics), ``metrics`` (``default`` and ``best`` with ``mean``, ``low`` and
    ``high``, and their ``difference``) and the ``interval`` of one difference."""


def write_search_page(search: SearchRecord, dest: Path) -> Path:
    """Write the search's page to the file ``dest``, whose folder is made if need be, and return it."""
    page = page_template("search.html.j2").render(_content(search))
    dest.parent.mkdir(parents=True, exist_ok=True)
    dest.write_text(page, encoding="utf-8")
    return dest


def _content(search: SearchRecord) -> dict[str, Any]:
    by_number = {row["trial"]: row for row in search.rows}
    own = by_number.get(0, {}).get(search.result)
    best = by_number[search.best][search.result]
    price = ["cost"] if search.cost is not None else []
    columns = ["trial", *search.keys, search.result, *price, "epochs", "status", "seconds"]
    ranked = sorted(search.rows, key=lambda row: _rank(row[search.result]), reverse=True)
    return {
        "search": search,
        "best_score": best,
        "own_score": own,
        "gain": best - own if is_number(own) else None,
        "budget": _budget(search),
        "parallel": parallel_coordinates(search.rows, search.keys, search.result, search.logs),
        "curves": learning_curves(search.rows, search.best, search.result),
        "importance": bars("Importance of each setting", list(search.importance.items())),
        "trade": _trade(search),
        "confirmation": _confirmation(search.confirmation),
        "rungs": [_rung(rung) for rung in search.rungs],
        "columns": columns,
        "rows": [(row["trial"] == search.best, [row.get(name) for name in columns]) for row in ranked],
        "failures": [row for row in search.rows if row["status"] == "failed"],
    }


def _budget(search: SearchRecord) -> dict[str, Any]:
    """Epochs trained and saved; seconds are those of the trials' epochs, whichever ran side by side."""
    trained = sum(row["epochs"] for row in search.rows)
    asked = search.epochs * len(search.rows)
    stopped = [row for row in search.rows if row["status"] == "stopped"]
    saved = sum(search.epochs - row["epochs"] for row in stopped)
    return {
        "trials": len(search.rows),
        "stopped": len(stopped),
        "trained": trained,
        "asked": asked,
        "saved": saved,
        "share": saved / asked if asked else 0.0,
        "minutes": sum(row["seconds"] for row in search.rows) / 60,
    }


def _rung(rung: Mapping[str, Any]) -> dict[str, Any]:
    went_on = sum(goes_on for _, _, goes_on in rung["trials"])
    return {**rung, "came": len(rung["trials"]), "went_on": went_on, "chart": rung_chart(rung)}


def _trade(search: SearchRecord) -> str | None:
    """Result over cost, a dot a trial: full where no other trial beats it in both."""
    if search.cost is None:
        return None
    dots = [
        Dot(
            row["cost"],
            row[search.result],
            f"trial {row['trial']}: {row[search.result]:.4f}",
            "best" if row["trial"] == search.best else "full" if row["pareto"] else "open",
        )
        for row in search.rows
        if is_number(row["cost"]) and is_number(row[search.result])
    ]
    return dot_plot("Result over cost", dots, search.cost, search.result) if dots else None


def _confirmation(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if found is None:
        return None
    metric = found["interval"]["metric"]
    groups = [
        (
            label,
            [
                (run[metric], f"seed {run['seed']}: {run[metric]:.4f}")
                for run in found["runs"]
                if run["arm"] == arm
            ],
        )
        for arm, label in (("default", "as it stands"), ("best", f"trial {found['winner']}"))
    ]
    low, high = found["interval"]["low"], found["interval"]["high"]
    return {
        **found,
        "difference": found["metrics"][metric]["difference"],
        "told": "the best config is better" if low > 0 else "the best config is worse" if high < 0 else _OPEN,
        "chart": strip_plot("Test scores by seed", groups, f"{metric}, test patients"),
    }


def _rank(value: Any) -> float:
    return float(value) if is_number(value) else float("-inf")
