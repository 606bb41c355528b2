"""Packers compared: this project's beside webdataset's, MosaicML Streaming's and LitData's, on the same slices.

    python benchmarks/pack.py --source data/kaggle_3m      # writes benchmarks/results/pack.md and .json
    python benchmarks/pack.py --quick --only ours webdataset

Each measurement is a process of its own with two working processes below it, from TIFF files in the page cache to a
finished data set on disk or on S3 (the server that AWS_ENDPOINT_URL names, else OpenStack Swift on this machine).
The packers take turns.  ``raw`` is uncompressed pixels; ``png`` is what each writes as PNG: our own encoder's here,
Pillow's with its defaults elsewhere.  Another table shows what the directing process holds as samples grow.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import environment
from contenders.contract import keys_below, s3_client
from loader_data import phantom, s3_server
from packers import PACKERS, SHARD, Job, slices_of
from process_tree import run_watched

from shards.parts import ROW_GROUP

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "pack.md"
TITLES = {
    "ours": "bts-dist",
    "ours-verified": "bts-dist, with its check of every file before",
    "webdataset": "webdataset ShardWriter",
    "streaming": "Streaming MDSWriter",
    "litdata": "LitData optimize",
}
PLACES = {"local": "disk", "s3": "S3"}


def main() -> None:
    options = _options()
    if set(options.only) - {"ours", "webdataset"}:
        environment.enter()
    with tempfile.TemporaryDirectory(prefix="bts-bench-") as name:
        folder = Path(name)
        source = options.source or phantom(folder / "kaggle_3m", options.quick)
        slices = slices_of(str(source))
        found: dict[str, Any] = {
            "about": environment.describe(
                ("numpy", "pillow", "boto3", "webdataset")
                + (("mosaicml-streaming", "litdata") if len(options.only) == len(PACKERS) else ())
            ),
            "source": "real patients" if options.source else "generated phantoms",
            "slices": len(slices),
            "shape": list(slices[0].pixels()[0].shape),
            "processes": options.processes,
            "measured": [],
        }
        for storage in options.storage:
            with _storage(storage, folder) as place:
                for entry in _take_turns(source, len(slices), place, options):
                    found["measured"].append({"storage": storage, **entry})
    found["memory"] = [_memory(samples) for samples in options.memory]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    options.output.write_text(report(found))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--source", type=Path, help="a folder in Kaggle's layout; else phantoms are generated"
    )
    parser.add_argument("--storage", nargs="+", choices=tuple(PLACES))
    parser.add_argument("--encoding", nargs="+", choices=("png", "raw"), default=["png", "raw"])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, help="turns of every packer")
    parser.add_argument("--only", nargs="+", choices=tuple(PACKERS), default=list(PACKERS))
    parser.add_argument("--memory", nargs="*", type=int, help="sample counts of the memory table")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument(
        "--quick", action="store_true", help="a proof that it runs: few phantoms, disk, one turn"
    )
    options = parser.parse_args()
    options.storage = options.storage or (["local"] if options.quick else ["local", "s3"])
    options.repeats = options.repeats or (1 if options.quick else 3)
    if options.memory is None:
        options.memory = [600] if options.quick else [20_000, 200_000]
    return options


@contextmanager
def _storage(storage: str, folder: Path) -> Iterator[str]:
    """A location that takes new data sets, and goes with them."""
    if storage == "local":
        with tempfile.TemporaryDirectory(dir=folder) as place:
            yield place
        return
    with s3_server(folder):
        client, bucket = s3_client(), f"bts-pack-{uuid.uuid4().hex[:12]}"
        client.create_bucket(Bucket=bucket)
        try:
            yield f"s3://{bucket}"
        finally:
            client.delete_bucket(Bucket=bucket)


def _take_turns(
    source: Path, num_slices: int, place: str, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    for turn in range(options.repeats):
        shift = turn % len(options.only)
        for encoding in options.encoding:
            for packer in (*options.only[shift:], *options.only[:shift]):
                _warm_up(source)
                job = Job(
                    str(source), f"{place}/{packer}-{uuid.uuid4().hex[:8]}", encoding, options.processes
                )
                seen, memory = _measured(packer, job)
                entry = {
                    "packer": packer,
                    "encoding": encoding,
                    "turn": turn,
                    "slices_per_s": num_slices / seen["pack_s"],
                    "verified_slices_per_s": num_slices / (seen["pack_s"] + seen.get("verify_s", 0)),
                    "bytes": _remove(job),
                    "memory": memory,
                }
                sys.stderr.write(f"{entry}\n")
                yield entry


def _measured(packer: str, job: Job) -> tuple[dict[str, float], int]:
    command = [sys.executable, str(HERE / "packers.py"), packer, json.dumps(asdict(job))]
    try:
        output, memory = run_watched(command)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{TITLES[packer]} failed:\n{error.stderr[-4000:]}")
    seen: dict[str, float] = json.loads(output.splitlines()[-1])
    return seen, memory


def _warm_up(source: Path) -> None:
    """Have every file of the source in the page cache, and nothing of the last turn left to write."""
    for path in source.rglob("*.tif"):
        path.read_bytes()
    os.sync()


def _remove(job: Job) -> int:
    """Remove a data set; returns how many bytes it had."""
    if not job.remote:
        files = [path for path in Path(job.dest).rglob("*") if path.is_file()]
        total = sum(path.stat().st_size for path in files)
        for path in files:
            path.unlink()
        return total
    client, total = s3_client(), 0
    for bucket, key in keys_below(job.dest):
        total += client.head_object(Bucket=bucket, Key=key)["ContentLength"]
        client.delete_object(Bucket=bucket, Key=key)
    return total


def _memory(samples: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, str(HERE / "pack_memory.py"), str(samples)], stdout=subprocess.PIPE, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def report(found: dict[str, Any]) -> str:
    """The whole page: ratios first."""
    entries = found["measured"]
    height, width, _ = found["shape"]
    turns = 1 + max(entry["turn"] for entry in entries)
    columns = list(dict.fromkeys((entry["storage"], entry["encoding"]) for entry in entries))
    parts = [
        "# Packers compared",
        "Written by `benchmarks/pack.py`, which says how it measures.",
        found["about"],
        f"- Data: {found['slices']:,} slices of {found['source']}, {height} × {width} × 3 with a mask, uint8; "
        f"{SHARD} or so in a shard; working processes: {found['processes']}; turns: {turns}",
    ]
    names = _names(entries)
    if "ours" in names and len({entry["packer"] for entry in entries}) > 1:
        parts += [
            "## Ratios: ours to the fastest other packer",
            _RATIOS,
            _table(columns, {name: _ratios(entries, name, columns) for name in ("ours", "ours-verified")}),
        ]
    parts += [
        "## Slices per second",
        "Median of the turns, and their range.",
        _table(columns, {name: _rates(entries, name, columns) for name in names}),
        "## Size and memory",
        "MB (10^6 bytes) of the data set; and the most memory that all processes held together (PSS, imported "
        "libraries included), in MiB, median of the turns.",
        _table(columns, {n: _sizes(entries, n, columns) for n in names if n != "ours-verified"}),
    ]
    if found["memory"]:
        parts += ["## Memory of the process that directs", _MEMORY, _memory_table(found["memory"])]
    return "\n\n".join(parts) + "\n"


_RATIOS = """\
Slices per second, ours divided by the fastest other one's in the same turn: the median, and the range over the turns.
Above 1 ours is faster. Before it packs, ours checks every file of the source, which the others do not offer; the
second row counts that time in."""

_MEMORY = f"""\
The most memory that the directing process held before packing (imports, the listing and the scans of the source) and
in the end, packing tiny slices in shards of 256. The rows of the index stay with the shards that they belong to, and
are joined {ROW_GROUP:,} at a time."""


def _memory_table(memory: Sequence[dict[str, float]]) -> str:
    lines = [
        "| Samples | Shards | Before, MiB | Most, MiB | Difference, MiB | Seconds |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for seen in memory:
        figures = (
            seen["before_mib"],
            seen["peak_mib"],
            seen["peak_mib"] - seen["before_mib"],
            seen["seconds"],
        )
        cells = [f"{seen['samples']:,}", f"{seen['shards']:,}", *(f"{figure:.0f}" for figure in figures)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


Column = tuple[str, str]


def _names(entries: Sequence[dict[str, Any]]) -> list[str]:
    packers = {entry["packer"] for entry in entries}
    return [name for name in TITLES if name.partition("-")[0] in packers]


def _rate(entry: dict[str, Any], verified: bool) -> float:
    return float(entry["verified_slices_per_s" if verified else "slices_per_s"])


def _values(entries: Sequence[dict[str, Any]], name: str, column: Column) -> list[float]:
    packer, _, verified = name.partition("-")
    return [
        _rate(entry, bool(verified))
        for entry in entries
        if (entry["packer"], entry["storage"], entry["encoding"]) == (packer, *column)
    ]


def _ratios(entries: Sequence[dict[str, Any]], name: str, columns: Sequence[Column]) -> list[str]:
    cells = []
    for column in columns:
        others = [
            _values(entries, other, column) for other in _names(entries) if other in PACKERS.keys() - {"ours"}
        ]
        best = [max(turn) for turn in zip(*others, strict=True)]
        ratios = [own / other for own, other in zip(_values(entries, name, column), best, strict=True)]
        cells.append(f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})")
    return cells


def _rates(entries: Sequence[dict[str, Any]], name: str, columns: Sequence[Column]) -> list[str]:
    cells = []
    for column in columns:
        values = _values(entries, name, column)
        cells.append(f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})")
    return cells


def _sizes(entries: Sequence[dict[str, Any]], name: str, columns: Sequence[Column]) -> list[str]:
    cells = []
    for storage, encoding in columns:
        same = [e for e in entries if (e["packer"], e["storage"], e["encoding"]) == (name, storage, encoding)]
        size, memory = (statistics.median(e[figure] for e in same) for figure in ("bytes", "memory"))
        cells.append(f"{size / 1e6:.0f} MB, {memory / 2**20:.0f} MiB")
    return cells


def _table(columns: Sequence[Column], rows: dict[str, list[str]]) -> str:
    headings = [f"{encoding}, {PLACES[storage]}" for storage, encoding in columns]
    lines = [f"| Packer | {' | '.join(headings)} |", "|---|" + "--:|" * len(columns)]
    lines += [f"| {TITLES[name]} | {' | '.join(cells)} |" for name, cells in rows.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
