"""What was chosen on validation patients as a page shows it: of one model, and fold by fold of a cross-validation.

Rows lie as in ``score.json``, which has them under ``inference``.
"""

from collections.abc import Sequence
from typing import Any

from bts_dist.charts import Row
from bts_dist.inference import Inference, Member


def choices(found: Row | None) -> dict[str, Any] | None:
    """The choices of one model: ``words``, ``patients`` and ``rows``; None where nothing was chosen."""
    if not found or not found.get("rows"):
        return None
    members = tuple(Member(**each) for each in found["members"])
    way = Inference(found["threshold"], found["mirror"], found["components"], members, dict(found))
    return {"words": way.describe(), "patients": found["patients"], "rows": found["rows"]}


def fold_choices(folds: Sequence[Row]) -> dict[str, Any] | None:
    """A row for each fold with a cell for each choice; None where no fold chose anything.

    A cell has the value that holds and, where it was taken, its ``gain`` in ``dice/patient`` on the fold's validation
    patients.  ``before`` and ``after`` are that Dice at the start and after all choices.
    """
    known = [(fold["fold"], fold.get("inference") or {}) for fold in folds]
    names = list(dict.fromkeys(row["choice"] for _, own in known for row in own.get("rows", [])))
    if not names:
        return None
    return {"names": names, "rows": [_fold_row(fold, own, names) for fold, own in known]}


def _fold_row(fold: int, found: Row, names: Sequence[str]) -> dict[str, Any]:
    rows = {row["choice"]: row for row in found.get("rows", [])}
    dice: dict[str, float | None] = {"before": None, "after": None, "gain": None}
    if rows:
        before, after = found["start"]["dice/patient"], found["dice/patient"]
        dice = {"before": before, "after": after, "gain": after - before}
    cells = [_cell(rows.get(name)) for name in names]
    return {"fold": fold, "patients": found.get("patients"), "cells": cells, **dice}


def _cell(row: Row | None) -> dict[str, Any]:
    """What a choice came to; ``number`` where it is one, for sorting."""
    if row is None:
        return {"value": None, "number": None, "gain": None}
    value = row["to"] if row["taken"] else row["from"]
    return {
        "value": value,
        "number": float(value) if row["choice"] == "threshold" else None,
        "gain": row["gain"] if row["taken"] else None,
    }
