"""Dice of parts of the test patients: by institution, by what sequences they lack, by the size of the tumour.

Parts are looked at after the fact and are small: they show where to look, and prove nothing.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bts_dist.estimates import draw, estimate, value_row
from bts_dist.patients import PatientScore, by_patient

FEWEST = 4
"""Patients from which on a mean has an interval.  Of three, one resample in 27 draws the same one three times: the
interval would reach from the lowest to the highest of them, whatever they are."""

Label = tuple[str, str]
"""A subgroup's name, and which patients these are, in words."""

_RULE = "empty truth and empty prediction count as 1"
_NO_TUMOUR: Label = ("none", "patients without tumour")
_ORDER = {"none": -1, "medium": 1, "large": 2}
"""Where the alphabet is no order; all others stand at 0."""


@dataclass(frozen=True)
class Subgroup:
    """``dice/patient`` of a part of the patients."""

    what: str
    """Which patients these are, in words."""
    n: int
    mean: float
    median: float
    low: float | None
    """Ends of the 95 % interval; ``None`` for fewer than ``FEWEST`` patients."""
    high: float | None


def subgroups(scores: Sequence[PatientScore], resamples: int, seed: int) -> dict[str, dict[str, Subgroup]]:
    """``dice/patient`` of each subgroup, by the kind of division and the subgroup's name.

    Kinds are ``institution``, ``missing`` (sequences that are a copy of FLAIR) and ``size``: patients with a tumour
    in thirds by its true volume.  A patient belongs to one subgroup of each kind, and intervals draw from the
    subgroup's patients only.

    Raises:
        ValueError: as ``estimates.draw``; there is no patient, or one appears twice.
    """
    ordered = by_patient(scores)
    divisions = {
        "institution": [(score.institution, "patients of this institution") for score in ordered],
        "missing": [_missing(score) for score in ordered],
        "size": _sizes(ordered),
    }
    return {kind: _divide(ordered, names, resamples, seed) for kind, names in divisions.items()}


def _missing(score: PatientScore) -> Label:
    if not score.missing:
        return "none", "patients with all sequences"
    return "+".join(score.missing), f"patients without {' and '.join(score.missing)}"


def _sizes(scores: Sequence[PatientScore]) -> list[Label]:
    """The third that each patient's tumour belongs to.

    The bounds are sizes of two of the patients: a third of those with a tumour, rounded up, and two thirds have one
    of this size or less.  Equal sizes go to the same third, so that thirds may differ in number.
    """
    known = [score.tumour_ml for score in scores if score.tumour_ml is not None]
    in_ml = len(known) == len(scores)
    sizes = np.array(known if in_ml else [score.tumour_voxels for score in scores])
    positive = sizes[sizes > 0]
    if not len(positive):
        return [_NO_TUMOUR for _ in scores]
    lower, upper = np.quantile(positive, [1 / 3, 2 / 3], method="inverted_cdf")
    low, high = (f"{bound:,.2f} mL" if in_ml else f"{bound:,.0f} voxels" for bound in (lower, upper))
    thirds = (
        (lower, ("small", f"tumours of at most {low}")),
        (upper, ("medium", f"tumours of more than {low} and at most {high}")),
        (np.inf, ("large", f"tumours of more than {high}")),
    )
    return [
        next(label for bound, label in thirds if size <= bound) if size > 0 else _NO_TUMOUR for size in sizes
    ]


def _divide(
    scores: Sequence[PatientScore], labels: Sequence[Label], resamples: int, seed: int
) -> dict[str, Subgroup]:
    members: dict[Label, list[PatientScore]] = defaultdict(list)
    for score, label in zip(scores, labels, strict=True):
        members[label].append(score)
    return {
        label[0]: _subgroup(label[1], members[label], resamples, seed)
        for label in sorted(members, key=lambda label: (_ORDER.get(label[0], 0), label))
    }


def _subgroup(what: str, members: Sequence[PatientScore], resamples: int, seed: int) -> Subgroup:
    row = value_row("dice/patient", _RULE, [score.dice for score in members])
    found = estimate(row, draw(len(members), resamples, seed))
    assert found.median is not None
    wide = found.n >= FEWEST
    return Subgroup(
        what, found.n, found.mean, found.median, found.low if wide else None, found.high if wide else None
    )
