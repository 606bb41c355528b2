"""Loader measurements as Markdown: ratios first, then what they are ratios of."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from contenders import ROWS, Row

Found = dict[str, Any]

Column = tuple[int, str, str]
"""Processes, storage, phase."""

PHASES = ("cold", "warm")

COMPARISONS: tuple[tuple[str, str, Callable[[Row], bool]], ...] = (
    ("our default: PNG, decoded samples kept in memory", "ours-png-kept", lambda row: True),
    ("raw shards, decoded samples kept in memory", "ours-raw-kept", lambda row: True),
    ("PNG decoded in every epoch", "ours-png", lambda row: not row.keeps and row.encoding == "png"),
    ("raw samples read in every epoch", "ours-raw", lambda row: not row.keeps and row.encoding == "raw"),
)
"""Which of our rows, and which rows of others it is held against."""


def report(found: Found) -> str:
    """The whole page."""
    entries = found["measured"]
    rows = [row for row in ROWS if any(entry["row"] == row.name for entry in entries)]
    turns = 1 + max(entry["turn"] for entry in entries)
    height, width, _ = found["shape"]
    parts = [
        "# Loaders compared",
        "Written by `benchmarks/loader.py`; what is measured and how is in `benchmarks/README.md`.",
        found["about"],
        f"- Data: {found['slices']:,} training slices of {found['source']}, {height} × {width} × 3 with a mask, "
        f"uint8; turns of every loader: {turns}",
        "## Ratios: ours to the fastest other loader",
        "Samples per second, ours divided by those of the loader named, the fastest other one with as many processes "
        "or fewer, in the same turn: the median, and the range over the turns. Above 1 ours is faster.",
        _ratios(entries, rows),
        "## Samples per second",
        "Median of the turns, and their range.",
        _rates(entries, rows),
        "## Memory and disk",
        "Memory that all processes hold together while samples are delivered (PSS, imported libraries included), "
        "median of the turns with the most processes; and the training split's size.",
        _sizes(found, rows),
    ]
    return "\n\n".join(parts) + "\n"


def _columns(entries: Sequence[Found]) -> list[Column]:
    places = dict.fromkeys((entry["processes"], entry["storage"]) for entry in entries)
    return [(processes, storage, phase) for processes, storage in sorted(places) for phase in PHASES]


def _heading(column: Column) -> str:
    processes, storage, phase = column
    return f"{ {'local': 'disk', 's3': 'S3'}[storage] }, {phase}, {processes} proc."


def _by_turn(entries: Sequence[Found], row: str, column: Column) -> dict[int, float]:
    """Samples per second in each turn that the row took."""
    processes, storage, phase = column
    return {
        entry["turn"]: entry[phase]
        for entry in entries
        if (entry["row"], entry["processes"], entry["storage"]) == (row, processes, storage)
    }


def _ratios(entries: Sequence[Found], rows: Sequence[Row]) -> str:
    columns = _columns(entries)
    lines = [["", *map(_heading, columns)]]
    names = {row.name for row in rows}
    for title, ours, comparable in COMPARISONS:
        others = [row for row in rows if not row.ours and comparable(row)]
        if ours in names and others:
            lines.append([title, *(_ratio(entries, ours, others, column) for column in columns)])
    return _table(lines)


def _ratio(entries: Sequence[Found], ours: str, others: Sequence[Row], column: Column) -> str:
    """Ours with the column's processes; the others may do with fewer, where that is faster for them."""
    processes, storage, phase = column
    fewer = sorted({entry["processes"] for entry in entries if entry["processes"] <= processes})
    rivals = [
        (f"{row.title}, {number} proc." if number < processes else row.title, found)
        for row in others
        for number in fewer
        if (found := _by_turn(entries, row.name, (number, storage, phase)))
    ]
    mine = _by_turn(entries, ours, column)
    if not mine or not rivals:
        return "–"
    best, theirs = max(rivals, key=lambda rival: statistics.median(rival[1].values()))
    ratios = [mine[turn] / rate for turn, rate in theirs.items() if turn in mine]
    median = statistics.median(ratios)
    shown = f"**{median:.2f}**" if median > 1 else f"{median:.2f}"
    return f"{shown} ({min(ratios):.2f}–{max(ratios):.2f}), {best}"


def _rates(entries: Sequence[Found], rows: Sequence[Row]) -> str:
    columns = _columns(entries)
    lines = [["", *map(_heading, columns)]]
    for row in rows:
        lines.append([row.title, *(_rate([*_by_turn(entries, row.name, c).values()]) for c in columns)])
    return _table(lines)


def _rate(found: Sequence[float]) -> str:
    if not found:
        return "–"
    return f"{statistics.median(found):,.0f} ({min(found):,.0f}–{max(found):,.0f})"


def _sizes(found: Found, rows: Sequence[Row]) -> str:
    entries = found["measured"]
    most = max(entry["processes"] for entry in entries)
    storages = list(dict.fromkeys(entry["storage"] for entry in entries))
    lines = [["", *(f"memory, {storage}, MiB" for storage in storages), "on disk, MiB"]]
    for row in rows:
        held = [
            [
                entry["memory"]
                for entry in entries
                if (entry["row"], entry["storage"], entry["processes"]) == (row.name, storage, most)
            ]
            for storage in storages
        ]
        memory = [f"{statistics.median(each) / 2**20:,.0f}" if each else "–" for each in held]
        lines.append([row.title, *memory, f"{found['disk_bytes'][row.name] / 2**20:,.0f}"])
    return _table(lines)


def _table(lines: Sequence[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, f"|{'---|' * len(lines[0])}", *body])
