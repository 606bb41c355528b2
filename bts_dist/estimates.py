"""Means over patients, with intervals that treat the patients as the sample."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bts_dist.counts import Counts, Ratios

MIN_RESAMPLES = 100
"""With fewer, the outer 2.5 % of the bootstrap distribution rest on a value or two."""

Draws = NDArray[np.int64]
"""How often each resample draws each patient, (resamples, patients): all that a resample's sums depend on."""


@dataclass(frozen=True)
class Estimate:
    """One row of the table."""

    mean: float
    median: float | None
    """Over the values that the mean is taken of; ``None`` for a pooled row, which has only one."""
    low: float
    high: float
    """Ends of the 95 % interval."""
    n: int
    """Patients with at least one value in this row."""
    rule: str
    """What counts where a mask is empty."""
    unit: str | None = None
    """``px`` or ``mm`` of a distance; ``at 2 px`` of a ratio that has a tolerance; else ``None``."""


@dataclass(frozen=True)
class Row:
    """A mean written as a ratio of sums over patients, so that resampling patients only weighs the sums."""

    name: str
    rule: str
    numerator: Ratios
    denominator: Ratios
    median: float | None
    unit: str | None = None


def mean_row(name: str, rule: str, values: Sequence[Ratios], unit: str | None = None) -> Row:
    """The mean of all values, given each patient's own values, of which there may be none."""
    together = np.concatenate(values)
    return Row(
        name,
        rule,
        numerator=np.array([own.sum() for own in values]),
        denominator=np.array([float(len(own)) for own in values]),
        median=float(np.median(together)) if len(together) else None,
        unit=unit,
    )


def value_row(name: str, rule: str, values: Sequence[float | None], unit: str | None = None) -> Row:
    """The mean over patients of one value each; ``None`` is undefined and left out."""
    own = [np.array([] if value is None else [value], dtype=np.float64) for value in values]
    return mean_row(name, rule, own, unit)


def pooled_row(name: str, rule: str, numerator: Counts, denominator: Counts) -> Row:
    """One ratio of counts that are added up over patients."""
    return Row(name, rule, numerator.astype(np.float64), denominator.astype(np.float64), median=None)


def draw(num_patients: int, resamples: int, seed: int) -> Draws:
    """Draw as many patients as there are, with replacement, ``resamples`` times.

    This is the percentile bootstrap (Efron 1979) over patients.  A drawn patient brings all slices along: slices
    of one patient resemble each other, and drawing them singly would make the interval too narrow.

    Raises:
        ValueError: ``resamples`` is less than ``MIN_RESAMPLES``.
    """
    if resamples < MIN_RESAMPLES:
        raise ValueError(f"{resamples} bootstrap resamples are too few; use at least {MIN_RESAMPLES}")
    shares = np.full(num_patients, 1 / num_patients)
    return np.random.default_rng(seed).multinomial(num_patients, shares, size=resamples)


def estimate(row: Row, draws: Draws) -> Estimate:
    """A row's mean and interval.  A resample in which it has no value does not enter the interval."""
    numerators, denominators = draws @ row.numerator, draws @ row.denominator
    has_value = denominators > 0
    low, high = interval(numerators[has_value] / denominators[has_value])
    return Estimate(
        mean=float(row.numerator.sum() / row.denominator.sum()),
        median=row.median,
        low=low,
        high=high,
        n=int(np.count_nonzero(row.denominator)),
        rule=row.rule,
        unit=row.unit,
    )


def interval(values: Ratios) -> tuple[float, float]:
    """Ends of the 95 % percentile interval of resampled values."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
