"""The section ``differs`` of a score as a table, which the console and the report show."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bts_dist.cohort import QUANTITIES, SHARES, SIZES

Group = Mapping[str, Any]
Line = tuple[str, str, str, str, str]

TITLE = "What differs from the training patients"
HEADINGS: Line = ("quantity", "training patients", "scored patients", "difference, SD", "by the rule")

_MOST_NAMED = 6


@dataclass(frozen=True)
class Row:
    """One quantity in words, and the numbers to sort by: None where there is none."""

    line: Line
    training: float | None
    scored: float | None
    difference: float | None


def lines(differs: Mapping[str, Any]) -> list[Line]:
    """A line for each quantity that either group has: both groups, the difference, and ``large`` where it is."""
    return [row.line for row in rows(differs)]


def rows(differs: Mapping[str, Any]) -> list[Row]:
    """The lines with numbers: counts, pixels of a slice, means, shares; and differences in standard deviations."""
    groups, found = (differs["training"], differs["scored"]), differs["differences"]
    known = [n for n in QUANTITIES if any(g is not None and n in g["quantities"] for g in groups)]
    size, sites = found.get("size"), found.get("institutions")
    unseen = "–" if sites is None else f"{sites['patients']} patients from unseen ones"
    return [
        _row("patients", [(_count(g), _number_of(g, "patients")) for g in groups], "", None),
        _row("institutions", [(_sites(g), _number_of(g, "institutions")) for g in groups], unseen, sites),
        _row(
            "pixels of a slice",
            [(_size(g), _number_of(g, "height", "width")) for g in groups],
            "–" if size is None else "",
            size,
        ),
        *(
            _row(
                QUANTITIES[n],
                [(_spread(g, n), _mean(g, n)) for g in groups],
                _difference(found.get(n)),
                found.get(n),
            )
            for n in known
        ),
    ]


def _row(
    what: str,
    groups: list[tuple[str, float | None]],
    difference: str,
    found: Mapping[str, Any] | None,
) -> Row:
    (training, own), (scored, other) = groups
    large = "large" if found is not None and found["large"] else ""
    return Row((what, training, scored, difference, large), own, other, (found or {}).get("smd"))


def _number_of(group: Group | None, *names: str) -> float | None:
    """The product of what ``names`` count."""
    if group is None:
        return None
    return math.prod(v if isinstance(v := group[name], int) else len(v) for name in names)


def _mean(group: Group | None, name: str) -> float | None:
    return None if group is None or name not in group["quantities"] else group["quantities"][name]["mean"]


def _count(group: Group | None) -> str:
    return "unknown" if group is None else f"{group['patients']:,}"


def _sites(group: Group | None) -> str:
    if group is None:
        return "unknown"
    most_first = sorted(group["institutions"].items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{name} {number}" for name, number in most_first[:_MOST_NAMED])
    rest = len(most_first) - _MOST_NAMED
    return f"{named} and {rest} more" if rest > 0 else named


def _size(group: Group | None) -> str:
    return "unknown" if group is None else f"{group['height']} × {group['width']}"


def _spread(group: Group | None, name: str) -> str:
    if group is None:
        return "unknown"
    if name not in group["quantities"]:
        return "–"
    spread = group["quantities"][name]
    if name in SHARES:
        return f"{spread['mean']:.0%}"
    own = f"{_number(spread['mean'])} ± {_number(spread['std'])}"
    return f"{own}, median {_number(spread['median'])}" if name in SIZES else own


def _difference(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    return "no spread" if found["smd"] is None else f"{found['smd']:+.2f}"


def _number(value: float) -> str:
    return f"{value:,.{0 if value >= 1000 else 1 if value >= 10 else 2}f}"
