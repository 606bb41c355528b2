"""Which patient goes to which split, and which slices go to which shard: pure functions of the scans."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np

from shards.config import HoldoutSplit, NoSplit
from shards.errors import InputError
from shards.order import hash64, permutation

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class Stratum(Protocol):
    """What the split needs to know of a patient."""

    @property
    def patient(self) -> str: ...
    @property
    def institution(self) -> str: ...
    @property
    def num_slices(self) -> int: ...
    @property
    def tumour_pixels(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Segment:
    """A run of one patient's slices: positions ``start`` to ``stop`` in the patient's order."""

    patient: str
    start: int
    stop: int


@dataclass(frozen=True)
class ShardPlan:
    name: str
    split: Split
    segments: tuple[Segment, ...]

    @property
    def num_samples(self) -> int:
        return sum(s.stop - s.start for s in self.segments)


def assign_splits(patients: Sequence[Stratum], split: HoldoutSplit | NoSplit) -> dict[str, Split]:
    """Assign each patient to a split, stratified by institution and tumour burden.

    Patients are ordered by institution and then by tumour pixels per slice, and the groups are dealt out along
    that order, so that each group has its share of every institution and of small and large tumours.

    Raises:
        InputError: there are too few patients for every split to get one, or all folds are asked for at once.
    """
    if isinstance(split, NoSplit):
        return {p.patient: "test" for p in patients}
    if split.fold == "all":
        raise InputError(
            "split.fold=all makes a data set for each fold, which `bts run` does; this command takes one fold: set "
            f"split.fold to a number from 0 to {split.folds - 1}"
        )
    shares = (
        [1 / split.folds] * split.folds if split.fold is not None else [split.train, split.val, split.test]
    )
    if len(patients) < len(shares):
        raise InputError(
            f"{len(patients)} patients cannot be split into {len(shares)} groups; add patients, "
            "or use --set split.kind=none to pack them all as test patients"
        )
    ordered = sorted(patients, key=lambda p: (p.institution, sum(p.tumour_pixels) / p.num_slices, p.patient))
    groups = _deal(len(ordered), shares, split.seed)
    if split.fold is None:
        names: list[Split] = ["train", "val", "test"]
    else:
        names = ["train"] * split.folds
        names[split.fold], names[(split.fold + 1) % split.folds] = "test", "val"
    return {p.patient: names[g] for p, g in zip(ordered, groups, strict=True)}


def _deal(num: int, shares: Sequence[float], seed: int) -> list[int]:
    """Give each of ``num`` ordered places to a group, so that every group is spread evenly along the order.

    A group of *n* members cuts the line into *n* equal strata and puts one member at random into each
    (stratified sampling); sorting all of them by position fills the places.
    """
    marks: list[tuple[float, int]] = []
    for group, total in enumerate(_totals(num, shares)):
        jitter = hash64(seed, group, np.arange(total, dtype=np.uint64)) / 2.0**64
        marks += [((k + jitter[k]) / total, group) for k in range(total)]
    return [group for _, group in sorted(marks)]


def _totals(num: int, shares: Sequence[float]) -> list[int]:
    """Whole sizes of the groups by largest remainder, each at least one."""
    exact = np.asarray(shares) / sum(shares) * num
    totals = np.floor(exact + 1e-9).astype(int)
    for group in np.argsort(totals - exact, kind="stable")[: num - totals.sum()]:
        totals[group] += 1
    while totals.min() == 0:
        totals[totals.argmin()] += 1
        totals[totals.argmax()] -= 1
    return [int(t) for t in totals]


def plan_shards(
    patients: Sequence[Stratum], splits: dict[str, Split], samples_per_shard: int, seed: int
) -> list[ShardPlan]:
    """Lay patients' slices into shards of ``samples_per_shard`` (the last of a split may be smaller).

    Training patients are laid in a shuffled order, so that neighbouring shards mix institutions; validation and
    test patients stay in order, so that scoring reads each volume in one go.
    """
    plans: list[ShardPlan] = []
    for split in SPLITS:
        members = sorted((p for p in patients if splits[p.patient] == split), key=lambda p: p.patient)
        if split == "train":
            members = [members[i] for i in permutation(len(members), seed)]
        for number, segments in enumerate(_cut(members, samples_per_shard)):
            plans.append(ShardPlan(f"shards/{split}-{number:06d}.tar", split, segments))
    return plans


def _cut(patients: Sequence[Stratum], samples_per_shard: int) -> Iterator[tuple[Segment, ...]]:
    segments: list[Segment] = []
    room = samples_per_shard
    for patient in patients:
        start = 0
        while start < patient.num_slices:
            stop = min(patient.num_slices, start + room)
            segments.append(Segment(patient.patient, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                yield tuple(segments)
                segments, room = [], samples_per_shard
    if segments:
        yield tuple(segments)
