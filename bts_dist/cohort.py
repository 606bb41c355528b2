"""What a group of patients is like, and in what another group differs: to be read before their scores are compared.

A checkpoint carries the summary of its training patients, since their data set is rarely at hand where a model is
scored on another one.  Figures are one a patient, so that patients weigh alike.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import numpy as np

from shards.reader import SplitReader
from shards.verify import SEQUENCES

LARGE = 0.5
"""Standardised mean difference from which on two groups differ much: half a standard deviation, which Cohen
("Statistical power analysis for the behavioral sciences", 1988) calls a medium effect."""

RULE = (
    f"large: the means over patients are more than {LARGE:g} standard deviations apart (the root of the mean of both "
    "variances); or images have another size; or patients come from institutions without training patients"
)
UNKNOWN = (
    "this checkpoint does not say what its training patients were like: it was made before that was recorded"
)

MOST_READ = 256
"""Patients that a summary looks at; of more, so many are spread evenly.  Each takes a read from the shards."""

NO_SITE = "unknown"
"""Institution of patients whose names tell none."""

_NAMES = {"pre": "pre-contrast", "flair": "FLAIR", "post": "post-contrast"}
QUANTITIES = {
    **{f"mean_{name}": f"{_NAMES[name]}: mean of the head, grey levels" for name in SEQUENCES},
    **{f"std_{name}": f"{_NAMES[name]}: standard deviation of the head, grey levels" for name in SEQUENCES},
    "slices": "slices per patient",
    "tumour_slices": "share of slices with tumour",
    "tumour_pixels": "tumour pixels per patient",
    "slice_pixels": "tumour pixels per slice with tumour",
    "tumour_ml": "tumour volume, ml",
    **{f"missing_{name}": f"patients without {_NAMES[name]}" for name in ("pre", "post")},
}
SHARES = ("tumour_slices", "missing_pre", "missing_post")
SIZES = ("tumour_pixels", "slice_pixels", "tumour_ml")
"""Some are many times as large as others, so the median stands beside the mean."""

Figures = dict[str, float]
"""A patient's value of each quantity that it has."""


@dataclass(frozen=True)
class Spread:
    """One quantity over the patients who have it."""

    n: int
    mean: float
    std: float
    """Of these patients, not an estimate of others (division by n)."""
    median: float


@dataclass(frozen=True)
class Cohort:
    """What a group of patients is like."""

    patients: int
    height: int
    width: int
    """Pixels of a slice as stored."""
    institutions: dict[str, int]
    """Patients of each."""
    quantities: dict[str, Spread]
    """By the keys of ``QUANTITIES``; one that no patient has is absent."""


def summarise(reader: SplitReader) -> Cohort:
    """The patients of one split.

    Raises:
        InputError: as ``SplitReader.read_facts``, of which one is read for each patient.
    """
    index = reader.index
    names, first, place = np.unique(np.asarray(index.patient), return_index=True, return_inverse=True)
    institutions: dict[str, int] = {}
    for sample in first.tolist():
        institutions[index.institution[sample]] = institutions.get(index.institution[sample], 0) + 1
    figures = []
    for number in np.unique(np.linspace(0, len(names) - 1, min(MOST_READ, len(names))).round().astype(int)):
        sample = int(first[number])
        facts = reader.read_facts(sample)
        levels = index.mean[sample].tolist(), index.std[sample].tolist()
        pixels = index.tumour_pixels[place == number].tolist()
        figures.append(figures_of(levels, pixels, facts.missing, facts.spacing_mm))
    height, width = reader.native_size
    return Cohort(len(names), height, width, dict(sorted(institutions.items())), spreads(figures))


def figures_of(
    levels: tuple[Sequence[float], Sequence[float]],
    pixels: Sequence[int],
    missing: Sequence[str],
    spacing_mm: Sequence[float] | None,
) -> Figures:
    """One patient's figures.

    ``levels`` are mean and standard deviation of each sequence, ``pixels`` the tumour pixels of each slice.
    """
    found: Figures = {}
    for kind, values in zip(("mean", "std"), levels, strict=True):
        # In the place of a missing sequence stands FLAIR, whose levels say nothing of it.
        found |= {f"{kind}_{n}": v for n, v in zip(SEQUENCES, values, strict=True) if n not in missing}
    positive = [number for number in pixels if number]
    found |= {
        "slices": len(pixels),
        "tumour_slices": len(positive) / len(pixels),
        "tumour_pixels": sum(pixels),
    }
    if positive:
        found["slice_pixels"] = sum(pixels) / len(positive)
    if spacing_mm is not None:
        found["tumour_ml"] = sum(pixels) * prod(spacing_mm) / 1000
    return found | {f"missing_{name}": float(name in missing) for name in ("pre", "post")}


def spreads(figures: Sequence[Figures]) -> dict[str, Spread]:
    """Each quantity over the patients who have it."""
    found = {}
    for name in QUANTITIES:
        values = np.array([own[name] for own in figures if name in own], np.float64)
        if len(values):
            # Equal values have no spread, whatever rounding makes of their sum.
            alike = values.min() == values.max()
            mean, std = (values[0], 0.0) if alike else (values.mean(), values.std())
            found[name] = Spread(len(values), float(mean), float(std), float(np.median(values)))
    return found


def difference(training: Spread, scored: Spread) -> float | None:
    """Standardised mean difference, above 0 where ``scored`` is higher; ``None`` where only the means have a spread.

    This is Cohen's d with the root of the mean of both variances (Austin, "Balance diagnostics…", Statistics in
    Medicine 2009), which for the share of a property uses p (1 - p).
    """
    spread = math.sqrt((training.std**2 + scored.std**2) / 2)
    if spread == 0:
        return 0.0 if training.mean == scored.mean else None
    return (scored.mean - training.mean) / spread


def to_json(cohort: Cohort) -> dict[str, Any]:
    """Plain values, as a checkpoint and ``score.json`` carry them."""
    return asdict(cohort)


def from_json(fields: Mapping[str, Any]) -> Cohort:
    quantities = {name: Spread(**spread) for name, spread in fields["quantities"].items()}
    return Cohort(**{**fields, "quantities": quantities})


def compare(training: Cohort | None, scored: Cohort) -> dict[str, Any]:
    """The section ``differs`` of ``score.json``: both groups, and what is large of their differences by ``RULE``.

    ``training`` is None where the checkpoint does not say; then ``unknown`` says so and nothing is compared.
    """
    groups = {"training": None if training is None else to_json(training), "scored": to_json(scored)}
    if training is None:
        return {"rule": RULE, **groups, "differences": {}, "unknown": UNKNOWN}
    differences: dict[str, Any] = {}
    for name in (n for n in QUANTITIES if n in training.quantities and n in scored.quantities):
        value = difference(training.quantities[name], scored.quantities[name])
        differences[name] = {"smd": value, "large": value is None or abs(value) > LARGE}
    other = (training.height, training.width) != (scored.height, scored.width)
    unseen = scored.institutions.keys() - training.institutions.keys() - {NO_SITE}
    num_unseen = sum(scored.institutions[name] for name in unseen)
    differences["size"] = {"large": other}
    differences["institutions"] = {"unseen": sorted(unseen), "patients": num_unseen, "large": bool(unseen)}
    return {"rule": RULE, **groups, "differences": differences, "unknown": None}
