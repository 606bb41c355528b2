"""Whether what a search found is better: its winner and the config as it stands, both trained with fresh seeds.

The seeds are others than the search's, whose luck is part of why the winner won.  Each model is scored once on the
test patients, whichever way it turns out; nothing is chosen by these scores.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from bts_dist.compose import with_overrides
from bts_dist.config import Config
from cluster.tune_ledger import FOLDER, Ledger, Trial, trial_name
from shards.store import MissingObject, ObjectStore, join_uri

PLACE = f"{FOLDER}/confirmation.json"
METRICS = ("dice/patient", "dice/slice", "dice/pooled", "iou/patient", "iou/pooled")
PAIRED = "dice/patient"
"""The metric whose difference has an interval."""


@dataclass(frozen=True)
class Arm:
    """One side of the comparison."""

    name: str
    trial: int
    """The trial whose values it has; 0 is the config as it stands."""
    config: Config


@dataclass(frozen=True)
class Outcome:
    """One trained and scored model."""

    arm: str
    trial: int
    seed: int
    run: str
    score: dict[str, Any]
    """Content of its ``score.json``."""


def arms(config: Config, best: Config, winner: Trial) -> tuple[Arm, Arm]:
    """The config as it stands, and the best one."""
    return Arm("default", 0, config), Arm("best", winner.number, best)


def seeds(config: Config) -> list[int]:
    """As many as ``tune.confirm`` says, without the search's own."""
    first = config.train.seed + 1
    return list(range(first, first + config.tune.confirm))


def confirmation_config(arm: Arm, ledger: Ledger, seed: int) -> Config:
    """The config of one training: full length, a run of its own in the search's folder."""
    fixed = {
        "train.seed": seed,
        "run.dir": join_uri(ledger.place, "confirmation"),
        "run.name": f"{trial_name(arm.trial)}-seed-{seed}",
        "tune.trials": 0,
        "tune.confirm": 0,
        # Each model predicts as it was validated.
        "score.choices": [],
        "score.ensemble": [],
        "track.group": ledger.group,
        "track.job_type": "confirmation",
    }
    return with_overrides(arm.config, fixed)


def compare(outcomes: Sequence[Outcome], resamples: int, seed: int) -> dict[str, Any]:
    """Mean and spread of each metric over the seeds of each arm, and the difference of the means.

    The difference of ``dice/patient`` has a 95 % percentile bootstrap interval over patients, paired: a resample
    draws patients with all their models' scores.  It says what other patients might have given with these models; the
    spread over seeds says what chance in training does.
    """
    by_arm = {name: [o for o in outcomes if o.arm == name] for name in ("default", "best")}
    rows = {}
    for metric in METRICS:
        values = {name: [o.score["metrics"][metric]["mean"] for o in group] for name, group in by_arm.items()}
        spread = {name: _spread(each) for name, each in values.items()}
        rows[metric] = {**spread, "difference": spread["best"]["mean"] - spread["default"]["mean"]}
    low, high, patients = _paired_interval(by_arm["default"], by_arm["best"], resamples, seed)
    return {
        "seeds": sorted({o.seed for o in outcomes}),
        "winner": by_arm["best"][0].trial,
        "metrics": rows,
        "interval": {"metric": PAIRED, "low": low, "high": high, "patients": patients},
        "runs": [
            {
                "arm": o.arm,
                "trial": o.trial,
                "seed": o.seed,
                "run": o.run,
                "checkpoint": o.score["checkpoint"],
                **{metric: o.score["metrics"][metric]["mean"] for metric in METRICS},
            }
            for o in outcomes
        ],
    }


def write_confirmation(run: ObjectStore, found: dict[str, Any]) -> None:
    run.put(PLACE, (json.dumps(found, indent=1) + "\n").encode())


def read_confirmation(run: ObjectStore) -> dict[str, Any] | None:
    """What ``write_confirmation`` wrote; None where there is none."""
    try:
        found: dict[str, Any] = json.loads(run.get(PLACE))
    except MissingObject:
        return None
    return found


def table(found: dict[str, Any]) -> list[list[str]]:
    """A row for each metric, below a row of headings."""
    rows = [["metric", "default", "lowest – highest", "best", "lowest – highest", "difference"]]
    for metric, row in found["metrics"].items():
        cells = [metric]
        for arm in ("default", "best"):
            cells += [f"{row[arm]['mean']:.4f}", f"{row[arm]['low']:.4f} – {row[arm]['high']:.4f}"]
        rows.append([*cells, f"{row['difference']:+.4f}"])
    return rows


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": fmean(values), "low": min(values), "high": max(values)}


def _paired_interval(
    default: Sequence[Outcome], best: Sequence[Outcome], resamples: int, seed: int
) -> tuple[float, float, int]:
    means = [_patient_means(group) for group in (default, best)]
    differences = np.array([means[1][patient] - means[0][patient] for patient in sorted(means[0])])
    size = len(differences)
    draws = np.random.default_rng(seed).integers(size, size=(resamples, size))
    low, high = np.percentile(differences[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high), size


def _patient_means(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Each patient's Dice, in the mean over the seeds."""
    scores: dict[str, list[float]] = {}
    for outcome in outcomes:
        for patient in outcome.score["patients"]:
            scores.setdefault(patient["patient"], []).append(patient["dice"])
    return {patient: fmean(values) for patient, values in scores.items()}
