"""What leakage is worth: the same recipe with patients split, and with slices split at random.

    python benchmarks/leak.py --config configs/lgg-cpu.yaml --set data.source=/path/to/kaggle_3m

Does ``bts run`` twice with equal seeds, epochs and shares: only ``split.kind``, ``data.shards`` and ``run.name``
differ.  Where slices were split, a model is scored on slices of patients whose other slices it was trained on, as in
many published results on this data set.  Nothing is searched: ``tune.trials`` is 0.  Writes
benchmarks/results/leak.md.  Given again, the command goes on where it was.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environment import describe
from steps import table

from bts_dist.compose import load_config
from bts_dist.config import Config
from bts_dist.run import named, open_run
from bts_dist.score import read_score
from bts_dist.track import read_metrics
from shards.config import HoldoutSplit
from shards.errors import InputError
from shards.manifest import Manifest, load_manifest
from shards.store import open_store

RESULT = Path(__file__).with_name("results") / "leak.md"
PACKAGES = ("torch", "numpy")
METRICS = ("dice/patient", "dice/slice", "dice/slice_positive", "dice/pooled", "iou/pooled")
CHOSEN_BY = "val/dice/patient"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Arm:
    """One of the two runs as it ended."""

    score: Row
    """``score.json``."""
    epochs: Sequence[Row]
    """Rows of ``metrics.jsonl``."""
    manifest: Manifest

    @property
    def chosen(self) -> Row:
        """The epoch that was scored: the first with the best validation."""
        return max(self.epochs, key=lambda row: float(row[CHOSEN_BY]))


def settings(config: Config) -> tuple[list[str], list[str]]:
    """What each arm has laid over the config: that of the split by patient, and that of the split by slice.

    Raises:
        InputError: the config does not split by patient, once.
    """
    split, name = config.split, named(config).run.name
    if not isinstance(split, HoldoutSplit) or split.fold is not None:
        raise InputError(
            f"split.kind is {split.kind} with fold {getattr(split, 'fold', None)}; the comparison is with one split by "
            "patient: set split.kind=patient and split.fold=null"
        )
    shares = ", ".join(f"{key}: {getattr(split, key)}" for key in ("seed", "train", "val", "test"))
    # Both predict as they were validated: what each might choose for itself is no part of the comparison.
    same = ["tune.trials=0", "score.choices=[]"]
    by_slice = [f"split={{kind: slice, {shares}}}", f"data.shards={config.data.shards.rstrip('/')}-by-slice"]
    return (
        [*same, f"run.name={name}-by-patient"],
        [*same, f"run.name={name}-by-slice", *by_slice],
    )


def arm(configs: Sequence[Path], sets: Sequence[str]) -> Arm:
    """Run ``bts run`` as a user would, and read what it left."""
    options = [part for path in configs for part in ("--config", str(path))]
    options += [part for value in sets for part in ("--set", value)]
    subprocess.run([sys.executable, "-m", "cluster.cli", "run", *options], check=True)
    config = load_config(configs, sets)
    run = open_run(config)
    manifest = load_manifest(open_store(config.data.shards, config.store))
    return Arm(read_score(run), read_metrics(run, "epoch"), manifest)


def page(by_patient: Arm, by_slice: Arm) -> str:
    """The page of results."""
    config = by_patient.score["config"]
    parts = [
        "# What leakage is worth",
        f"The same recipe twice, {config['train']['epochs']} epochs, seed {config['train']['seed']}, once with "
        "patients split and once with slices split at random. **The score by slice is no result**, and says so: "
        f"“{by_slice.score['leak']}”.",
        table(
            ("metric", "by patient", "95 % interval", "by slice", "95 % interval", "difference, points"),
            [_metric(name, by_patient.score, by_slice.score) for name in METRICS],
        ),
        "Means with bootstrap intervals over each arm's own test patients, which differ: so the difference has none. "
        "`dice/patient` is of whole volumes where patients are split, and of the few slices that were drawn where "
        "slices are; the other rows count the same things in both.",
        table(("", "by patient", "by slice"), _facts(by_patient, by_slice)),
        "Validation is split as the test is: where slices are split, it leaks too.",
        describe(PACKAGES),
    ]
    return "\n\n".join(parts) + "\n"


def _metric(name: str, by_patient: Row, by_slice: Row) -> tuple[str, ...]:
    ours, leaked = (score["metrics"][name] for score in (by_patient, by_slice))
    figures = [cell for row in (ours, leaked) for cell in (f"{row['mean']:.4f}", _interval(row))]
    return (f"`{name}`", *figures, f"{100 * (leaked['mean'] - ours['mean']):+.1f}")


def _interval(row: Row) -> str:
    return f"{row['low']:.4f} – {row['high']:.4f}"


def _facts(*arms: Arm) -> list[tuple[str, ...]]:
    columns = [_column(each) for each in arms]
    return [(name, *(column[name] for column in columns)) for name in columns[0]]


def _column(arm: Arm) -> dict[str, str]:
    patients, chosen = arm.score["patients"], arm.chosen
    slices = sum(row["slices"] for row in patients)
    empty = slices - sum(row["tumour_slices"] for row in patients)
    listed = arm.manifest.patients
    return {
        "patients with training slices": str(len(listed["train"])),
        "training slices": str(arm.manifest.num_samples("train")),
        "test patients": str(len(patients)),
        "of them with training slices too": str(len(set(listed["test"]) & set(listed["train"]))),
        "test slices": str(slices),
        "of them without tumour": f"{empty} ({empty / slices:.0%})",
        "test patients without tumour in their test slices": str(
            sum(not row["tumour_slices"] for row in patients)
        ),
        "epoch chosen on validation": f"{chosen['epoch']} of {len(arm.epochs)}",
        "threshold": f"{arm.score['threshold']:.1f}",
        **{
            f"`{name}` at that epoch": f"{chosen[name]:.4f}"
            for name in (CHOSEN_BY, "val/dice/slice", "val/dice/pooled")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", "-c", type=Path, action="append", default=[])
    parser.add_argument("--set", "-s", action="append", default=[])
    options = parser.parse_args()
    try:
        own = settings(load_config(options.config, options.set))
    except InputError as error:
        parser.error(str(error))
    by_patient, by_slice = (arm(options.config, [*options.set, *sets]) for sets in own)
    RESULT.write_text(page(by_patient, by_slice), encoding="utf-8")


if __name__ == "__main__":
    main()
