"""Loaders compared: this project's beside webdataset, MosaicML Streaming, LitData and a plain PyTorch Dataset.

The same slices, the same batch and the same number of decoding processes, from local disk and from S3, in one run:

    python benchmarks/loader.py --source data/kaggle_3m      # writes benchmarks/results/loader.md and .json
    python benchmarks/loader.py --quick --only ours tiffs    # seconds, and no peers to install

Each measurement is a process of its own, and the contenders take turns: every one once, then every one again.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import environment
from contenders import ROWS, Row
from contenders.contract import Setting, checksum
from loader_data import drop_from_page_cache, make_formats, phantom, s3_server, uploaded
from loader_report import report

RESULT = Path(__file__).with_name("results") / "loader.md"
MEASURE = Path(__file__).with_name("loader_measure.py")


def main() -> None:
    options = _options()
    rows = [row for row in ROWS if not options.only or row.module in options.only]
    peers = [row for row in rows if row.peer]
    if peers:
        environment.enter()
    with tempfile.TemporaryDirectory(prefix="bts-bench-") as name:
        folder = Path(name)
        formats = options.work or folder / "formats"
        source = options.source or phantom(folder / "kaggle_3m", options.quick)
        slices = make_formats(rows, source, formats)
        found: dict[str, Any] = {
            "about": environment.describe() if peers else environment.describe(("torch", "numpy", "pillow")),
            "source": "real patients" if options.source else "generated phantoms",
            "slices": len(slices),
            "shape": list(slices[0].pixels()[0].shape),
            "disk_bytes": {row.name: _bytes_below(formats / row.data, row.files) for row in rows},
            "measured": [],
        }
        wanted = (len(slices), checksum(item.pixels() for item in slices))
        for storage in options.storage:
            with _places(storage, rows, formats, folder) as place:
                for entry in _take_turns(rows, place, options, wanted):
                    found["measured"].append({"storage": storage, **entry})
                    _write(options.output, found)  # so that a run that is stopped leaves what it has


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--source", type=Path, help="a folder in Kaggle's layout; by default phantoms are generated"
    )
    parser.add_argument(
        "--work", type=Path, help="keep the data sets made of the source here, and use them again"
    )
    parser.add_argument("--storage", nargs="+", choices=("local", "s3"))
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2], help="that decode, for everyone")
    parser.add_argument("--repeats", type=int, help="turns of every contender")
    parser.add_argument("--warm", type=int, help="epochs after the first, of which the median counts")
    parser.add_argument("--only", nargs="+", metavar="MODULE", help="of benchmarks/contenders")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument(
        "--quick", action="store_true", help="a proof that it runs: few phantoms, local disk, one turn"
    )
    options = parser.parse_args()
    options.storage = options.storage or (["local"] if options.quick else ["local", "s3"])
    options.repeats = options.repeats or (1 if options.quick else 3)
    options.warm = options.warm or (1 if options.quick else 3)
    return options


@contextmanager
def _places(storage: str, rows: Sequence[Row], formats: Path, folder: Path) -> Iterator[Callable[[Row], str]]:
    """Where each row finds its data."""
    if storage == "local":
        yield lambda row: str(formats / row.data)
        return
    with s3_server(folder), uploaded(formats, {row.data for row in rows}) as bucket:
        yield lambda row: f"s3://{bucket}/{row.data}"


def _take_turns(
    rows: Sequence[Row], place: Callable[[Row], str], options: argparse.Namespace, wanted: tuple[int, str]
) -> Iterator[dict[str, Any]]:
    for turn in range(options.repeats):
        for processes in options.processes:
            for row in (*rows[turn:], *rows[:turn]):
                data = place(row)
                # A file at a time from S3 takes minutes: the plain Dataset takes one turn there, of one warm epoch.
                slow = row.module == "tiffs" and data.startswith("s3://")
                if slow and turn:
                    continue
                warm_epochs = 1 if slow else options.warm
                with tempfile.TemporaryDirectory(prefix="bts-cache-") as cache:
                    setting = Setting(data, row.encoding, row.keeps, processes, cache)
                    seen = _measured(row, setting, warm_epochs)
                num_samples, pixels = wanted
                if set(seen["samples"]) != {num_samples} or seen["checksum"] != pixels:
                    sys.exit(f"{row.title}: {seen}; {num_samples} samples of checksum {pixels} were to come")
                entry = {
                    "row": row.name,
                    "processes": processes,
                    "turn": turn,
                    "cold": num_samples / seen["cold_s"],
                    "warm": num_samples / seen["warm_s"],
                    "memory": seen["memory"],
                }
                sys.stderr.write(f"{entry}\n")
                yield entry


def _measured(row: Row, setting: Setting, warm_epochs: int) -> dict[str, Any]:
    """What a fresh process measures."""
    if not setting.remote:
        drop_from_page_cache(Path(setting.data))
    command = [sys.executable, MEASURE, row.name, json.dumps(asdict(setting)), str(warm_epochs)]
    # Peers warn of read-only arrays and the like.
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=quiet)
    if done.returncode:
        sys.exit(f"{row.title} failed")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _bytes_below(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file())


def _write(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    path.write_text(report(found))


if __name__ == "__main__":
    main()
