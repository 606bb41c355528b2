"""Which patient goes to which split, and which slices go to which shard: pure functions of the scans."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, assert_never, get_args

import numpy as np

from shards.config import HoldoutSplit, NoSplit, SliceSplit, SplitConfig
from shards.errors import InputError
from shards.order import hash64, permutation

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

Places = dict[Split, dict[str, Sequence[int]]]
"""The patients of each split, each with the positions of its slices there, ascending: a ``range`` of all of them, and
fewer under a split by slice alone."""


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
    """Slices of one patient that follow each other in a shard."""

    patient: str
    positions: Sequence[int]
    """Places in the patient's order, ascending: a ``range``, which takes no memory, unless the split is by slice."""


@dataclass(frozen=True)
class ShardPlan:
    name: str
    split: Split
    segments: tuple[Segment, ...]

    @property
    def num_samples(self) -> int:
        return sum(len(s.positions) for s in self.segments)


def divide(patients: Sequence[Stratum], split: SplitConfig) -> Places:
    """Which slices of which patients are in each split.

    Raises:
        InputError: as ``assign_splits``; or there are too few slices for a split by slice.
    """
    match split:
        case SliceSplit():
            slices = assign_slices(patients, split)
            found: Places = {name: {} for name in SPLITS}
            for patient, names in slices.items():
                for name in SPLITS:
                    positions = tuple(at for at, own in enumerate(names) if own == name)
                    if positions:
                        found[name][patient] = positions
            return found
        case HoldoutSplit() | NoSplit():
            splits = assign_splits(patients, split)
            return {
                name: {p.patient: range(p.num_slices) for p in patients if splits[p.patient] == name}
                for name in SPLITS
            }
        case _:
            assert_never(split)


def assign_slices(patients: Sequence[Stratum], split: SliceSplit) -> dict[str, tuple[Split, ...]]:
    """Assign each slice of each patient to a split at random, with no regard to whose it is: this leaks.

    Slices are ordered by a hash of (seed, patient, position), and that order is cut into the shares.

    Raises:
        InputError: there are too few slices for every split to get one.
    """
    total = sum(p.num_slices for p in patients)
    if total < len(SPLITS):
        raise InputError(f"{total} slices cannot be split into {len(SPLITS)} groups; add patients")
    drawn: list[tuple[int, str, int]] = []
    for patient in patients:
        word = int.from_bytes(hashlib.sha256(patient.patient.encode()).digest()[:8])
        hashes = hash64(split.seed, word, np.arange(patient.num_slices, dtype=np.uint64)).tolist()
        drawn += [(value, patient.patient, at) for at, value in enumerate(hashes)]
    names = np.repeat(np.asarray(SPLITS, object), _totals(total, [split.train, split.val, split.test]))
    found: dict[str, list[Split]] = {p.patient: ["train"] * p.num_slices for p in patients}
    for (_, name, at), own in zip(sorted(drawn), names.tolist(), strict=True):
        found[name][at] = own
    return {name: tuple(own) for name, own in found.items()}


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


def plan_shards(places: Places, samples_per_shard: int, seed: int) -> list[ShardPlan]:
    """Lay patients' slices into shards of ``samples_per_shard`` (the last of a split may be smaller).

    Training patients are laid in a shuffled order, so that neighbouring shards mix institutions; validation and
    test patients stay in order, so that scoring reads each volume in one go.
    """
    plans: list[ShardPlan] = []
    for split in SPLITS:
        members = sorted(places[split])
        if split == "train":
            members = [members[i] for i in permutation(len(members), seed)]
        for number, segments in enumerate(_cut(members, places[split], samples_per_shard)):
            plans.append(ShardPlan(f"shards/{split}-{number:06d}.tar", split, segments))
    return plans


def _cut(
    patients: Sequence[str], positions: Mapping[str, Sequence[int]], samples_per_shard: int
) -> Iterator[tuple[Segment, ...]]:
    segments: list[Segment] = []
    room = samples_per_shard
    for patient in patients:
        start = 0
        while start < len(positions[patient]):
            stop = min(len(positions[patient]), start + room)
            segments.append(Segment(patient, positions[patient][start:stop]))
            room -= stop - start
            start = stop
            if room == 0:
                yield tuple(segments)
                segments, room = [], samples_per_shard
    if segments:
        yield tuple(segments)
