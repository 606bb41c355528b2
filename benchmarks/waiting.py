"""How much of a training's time its steps wait for data: real training, epoch by epoch, for each kind of cache.

    python benchmarks/waiting.py --shards data/lgg-shards --config configs/lgg-cpu.yaml

One process trains with the given config, once for each cache, from an empty node cache.  The first epoch is cold:
samples are decoded (and fetched, if the shards lie on object storage) while the steps run.

Prediction.  A step of 16 slices at 128 px takes some 0.4 s on two cores, reading them from memory a copy of 1 MB,
some 0.1 ms and done ahead of the step: the wait is what a queue costs, far below 1 %.  Without a cache a step's
16 slices take about 10 ms to decode, again ahead of the step, but on cores that the step uses too: the steps get
slower, and still wait for nothing but the first batch of the run.
"""

import argparse
import tempfile
from pathlib import Path
from typing import get_args

from environment import describe

from bts_dist.compose import load_config
from bts_dist.config import Config
from bts_dist.runtime import local_runtime
from bts_dist.track import read_metrics
from bts_dist.train import train
from shards.config import DataConfig
from shards.store import open_store

TITLE = "How long a training's steps wait for data"
CACHES = [
    kind for kind in get_args(DataConfig.model_fields["cache"].annotation) if kind not in ("auto", "device")
]


def measure(config: Config) -> list[dict[str, float]]:
    """Train and return each epoch's row of the run's record."""
    with tempfile.TemporaryDirectory() as folder:
        run = open_store(folder)
        train(config, local_runtime(), run, Path(folder) / "workspace")
        return read_metrics(open_store(f"{folder}/workspace"), "epoch")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", required=True, help="a packed data set, local or s3://")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--where", help="what to call the shards on the page")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "waiting.md")
    parser.add_argument("--set", action="append", default=[], help="as in bts")
    options = parser.parse_args()
    table = [
        "| cache | epoch | training, s | waiting for data, s | share | slices/s |",
        "|---|---|---|---|---|---|",
    ]
    for cache in CACHES:
        with tempfile.TemporaryDirectory() as node:
            settings = {
                "data.shards": options.shards,
                "data.cache": cache,
                "store.cache_dir": node,
                "train.epochs": options.epochs,
                "train.early_stop": "null",
                "track.wandb": "disabled",
                "track.overlays": 0,
            }
            overrides = [*options.set, *(f"{key}={value}" for key, value in settings.items())]
            for row in measure(load_config([options.config], overrides)):
                seconds, share = row["time/train_s"], row["share/data"]
                table.append(
                    f"| {cache} | {row['epoch']:g}{' (cold)' if row['epoch'] == 1 else ''} | {seconds:.1f} "
                    f"| {share * seconds:.3f} | {share:.2%} | {row['samples_per_s']:.1f} |"
                )
                print(table[-1], flush=True)
    text = [
        f"# {TITLE}",
        "",
        describe(("torch",)),
        f"- Shards: {options.where or options.shards}",
        "",
        *table,
    ]
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
