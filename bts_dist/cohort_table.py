"""The section ``differs`` of a score as a table, which the console and the report show."""

from collections.abc import Mapping
from typing import Any

from bts_dist.cohort import QUANTITIES, SHARES, SIZES

Group = Mapping[str, Any]
Line = tuple[str, str, str, str, str]

TITLE = "What differs from the training patients"
HEADINGS: Line = ("quantity", "training patients", "scored patients", "difference, SD", "by the rule")

_MOST_NAMED = 6


def lines(differs: Mapping[str, Any]) -> list[Line]:
    """A line for each quantity that either group has: both groups, the difference, and ``large`` where it is."""
    groups, found = (differs["training"], differs["scored"]), differs["differences"]
    known = [n for n in QUANTITIES if any(g is not None and n in g["quantities"] for g in groups)]
    size, sites = found.get("size"), found.get("institutions")
    unseen = "–" if sites is None else f"{sites['patients']} patients from unseen ones"
    return [
        _line("patients", [_count(g) for g in groups], "", None),
        _line("institutions", [_sites(g) for g in groups], unseen, sites),
        _line("pixels of a slice", [_size(g) for g in groups], "–" if size is None else "", size),
        *(
            _line(QUANTITIES[n], [_spread(g, n) for g in groups], _difference(found.get(n)), found.get(n))
            for n in known
        ),
    ]


def _line(what: str, groups: list[str], difference: str, found: Mapping[str, Any] | None) -> Line:
    return what, *groups, difference, "large" if found is not None and found["large"] else ""  # type: ignore[return-value]


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
