from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.config import HoldoutSplit, NoSplit, SliceSplit
from shards.errors import InputError
from shards.plan import Split, assign_slices, assign_splits, divide, plan_shards


@dataclass(frozen=True)
class Patient:
    patient: str
    institution: str
    tumour_pixels: tuple[int, ...]

    @property
    def num_slices(self) -> int:
        return len(self.tumour_pixels)


def cohort(sizes: dict[str, int], seed: int = 0) -> list[Patient]:
    """Patients of institutions of these sizes, with log-normal tumour burdens."""
    rng = np.random.default_rng(seed)
    patients = []
    for institution, size in sizes.items():
        for number in range(size):
            burden = rng.lognormal(6, 1)
            pixels = tuple(int(burden * share) for share in rng.random(rng.integers(20, 60)))
            patients.append(Patient(f"{institution}_{number:03d}", institution, pixels))
    return patients


PATIENTS = st.lists(
    st.tuples(st.sampled_from("ABC"), st.lists(st.integers(0, 50), min_size=1, max_size=9)),
    min_size=3,
    max_size=60,
).map(lambda rows: [Patient(f"p{n:02d}", site, tuple(px)) for n, (site, px) in enumerate(rows)])
SPLITS = st.builds(HoldoutSplit, seed=st.integers(0, 2**32))

HOSPITALS = {"CS": 16, "DU": 45, "EZ": 2, "FG": 14, "HT": 33}


@given(PATIENTS, SPLITS)
def test_every_patient_gets_one_split_and_every_split_a_patient(
    patients: list[Patient], split: HoldoutSplit
) -> None:
    splits = assign_splits(patients, split)
    assert splits.keys() == {p.patient for p in patients}
    assert set(splits.values()) == {"train", "val", "test"}


@pytest.mark.parametrize(
    ("num", "totals"),
    [(110, (88, 11, 11)), (88, (70, 9, 9)), (10, (8, 1, 1)), (4, (2, 1, 1)), (3, (1, 1, 1))],
)
@pytest.mark.parametrize("seed", range(3))
def test_totals_are_exact(num: int, totals: tuple[int, ...], seed: int) -> None:
    counts = Counter(assign_splits(cohort({"A": num}), HoldoutSplit(seed=seed)).values())
    assert (counts["train"], counts["val"], counts["test"]) == totals


@pytest.mark.parametrize("seed", range(10))
def test_every_institution_is_in_every_split_in_proportion(seed: int) -> None:
    patients = cohort(HOSPITALS)
    split = HoldoutSplit(seed=seed)
    splits = assign_splits(patients, split)
    for institution, size in HOSPITALS.items():
        counts = Counter(splits[p.patient] for p in patients if p.institution == institution)
        for name in ("train", "val", "test"):
            wanted = size * float(getattr(split, name))
            assert abs(counts[name] - wanted) <= 2
            assert counts[name] > 0 or wanted < 2


def burdens(patients: Sequence[Patient], splits: dict[str, Split]) -> list[float]:
    """Mean logarithm of tumour pixels per slice of each split."""
    logs = {p.patient: np.log(sum(p.tumour_pixels) / p.num_slices) for p in patients}
    return [float(np.mean([v for p, v in logs.items() if splits[p] == s])) for s in ("train", "val", "test")]


def test_splits_have_alike_tumours_more_so_than_by_chance() -> None:
    patients = cohort(HOSPITALS)
    stratified, by_chance = [], []
    for seed in range(40):
        splits = assign_splits(patients, HoldoutSplit(seed=seed))
        stratified.append(np.ptp(burdens(patients, splits)))
        names = list(splits.values())
        np.random.default_rng(seed).shuffle(names)
        by_chance.append(np.ptp(burdens(patients, dict(zip(splits, names, strict=True)))))
    assert np.mean(stratified) < 0.7 * np.mean(by_chance)
    assert max(stratified) < max(by_chance)


@given(PATIENTS.filter(lambda patients: len(patients) >= 5), st.integers(0, 2**32))
@settings(max_examples=40)
def test_folds_test_each_patient_once_and_validate_on_the_next_fold(
    patients: list[Patient], seed: int
) -> None:
    by_fold = [assign_splits(patients, HoldoutSplit(seed=seed, fold=k, folds=5)) for k in range(5)]

    def members(fold: int, split: Split) -> set[str]:
        return {p for p, name in by_fold[fold % 5].items() if name == split}

    tested = [p for k in range(5) for p in members(k, "test")]
    assert sorted(tested) == sorted(p.patient for p in patients)
    sizes = [len(members(k, "test")) for k in range(5)]
    assert max(sizes) - min(sizes) <= 1
    for k in range(5):
        assert members(k, "val") == members(k + 1, "test")


def test_the_split_depends_on_the_seed_and_not_on_the_order_of_patients() -> None:
    patients = cohort(HOSPITALS)
    assert assign_splits(patients[::-1], HoldoutSplit()) == assign_splits(patients, HoldoutSplit())
    assert assign_splits(patients, HoldoutSplit(seed=1)) != assign_splits(patients, HoldoutSplit())


def test_the_split_is_the_same_on_every_platform() -> None:
    """Pinned: a change would move patients between training and test."""
    splits = assign_splits([Patient(f"p{n}", "A", (n,)) for n in range(10)], HoldoutSplit(seed=3))
    assert {name: p for p, name in splits.items() if name != "train"} == {"test": "p1", "val": "p4"}


@pytest.mark.parametrize(("split", "groups"), [(HoldoutSplit(), 3), (HoldoutSplit(fold=0, folds=5), 5)])
def test_too_few_patients_are_an_error(split: HoldoutSplit, groups: int) -> None:
    few = cohort({"A": groups - 1})
    with pytest.raises(InputError, match=rf"{groups - 1} patients cannot be split into {groups} groups"):
        assign_splits(few, split)
    assert len(assign_splits(cohort({"A": groups}), split)) == groups


def test_without_a_split_all_are_test_patients() -> None:
    assert set(assign_splits(cohort({"A": 1, "B": 1}), NoSplit()).values()) == {"test"}


@given(PATIENTS, SPLITS, st.integers(1, 40), st.integers(0, 2**32))
def test_every_slice_is_in_one_shard_and_shards_are_full_but_for_the_last(
    patients: list[Patient], split: HoldoutSplit, samples_per_shard: int, seed: int
) -> None:
    splits = assign_splits(patients, split)
    plans = plan_shards(divide(patients, split), samples_per_shard, seed)
    slices = [
        (segment.patient, position)
        for plan in plans
        for segment in plan.segments
        for position in segment.positions
    ]
    assert sorted(slices) == sorted((p.patient, n) for p in patients for n in range(p.num_slices))
    for name in ("train", "val", "test"):
        own = [plan for plan in plans if plan.split == name]
        assert [plan.name for plan in own] == [f"shards/{name}-{n:06d}.tar" for n in range(len(own))]
        assert all(splits[s.patient] == name for plan in own for s in plan.segments)
        assert all(plan.num_samples == samples_per_shard for plan in own[:-1])
        assert 1 <= own[-1].num_samples <= samples_per_shard


def patients_of(plans: Sequence[object], split: Split) -> list[str]:
    return list(dict.fromkeys(s.patient for p in plans if p.split == split for s in p.segments))


def test_training_patients_are_shuffled_by_the_seed_and_the_others_stay_in_order() -> None:
    patients = cohort(HOSPITALS)
    places = divide(patients, HoldoutSplit())
    one, other = (plan_shards(places, 256, seed) for seed in (0, 1))
    assert patients_of(one, "train") != sorted(patients_of(one, "train"))
    assert patients_of(one, "train") != patients_of(other, "train")
    assert patients_of(one, "test") == sorted(patients_of(one, "test"))
    assert patients_of(one, "val") == patients_of(other, "val")


@given(PATIENTS, st.integers(0, 2**32), st.integers(1, 40))
def test_a_split_by_slice_puts_each_slice_into_one_shard_of_its_split(
    patients: list[Patient], seed: int, samples_per_shard: int
) -> None:
    split = SliceSplit(seed=seed)
    slices = assign_slices(patients, split)
    plans = plan_shards(divide(patients, split), samples_per_shard, seed)
    packed = Counter(
        (segment.patient, position, plan.split)
        for plan in plans
        for segment in plan.segments
        for position in segment.positions
    )
    assert packed == Counter((p, at, own) for p, names in slices.items() for at, own in enumerate(names))
    for plan in plans:
        assert all(list(s.positions) == sorted(s.positions) for s in plan.segments)
    for name in ("train", "val", "test"):
        sizes = [plan.num_samples for plan in plans if plan.split == name]
        assert all(size == samples_per_shard for size in sizes[:-1])
        assert 1 <= sizes[-1] <= samples_per_shard


def test_a_split_by_slice_has_its_shares_and_divides_patients() -> None:
    patients = cohort(HOSPITALS)
    slices = assign_slices(patients, SliceSplit())
    total = sum(p.num_slices for p in patients)
    counts = Counter(name for names in slices.values() for name in names)
    for name, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
        assert abs(counts[name] - share * total) < 1  # type: ignore[index]
    assert sum(len(set(names)) == 3 for names in slices.values()) > len(patients) / 2
    # Neighbours are as far apart as any two: none of the pairs of a patient is more alike than chance.
    pairs = [(a == b) for names in slices.values() for a, b in pairwise(names)]
    assert np.mean(pairs) == pytest.approx(0.8**2 + 0.1**2 + 0.1**2, abs=0.02)


def test_a_split_by_slice_depends_on_the_seed_and_not_on_the_order_of_patients() -> None:
    patients = cohort(HOSPITALS)
    assert assign_slices(patients[::-1], SliceSplit()) == assign_slices(patients, SliceSplit())
    assert assign_slices(patients, SliceSplit(seed=1)) != assign_slices(patients, SliceSplit())


def test_a_split_by_slice_is_the_same_on_every_platform() -> None:
    slices = assign_slices([Patient("p", "A", (0,) * 5), Patient("q", "A", (0,) * 5)], SliceSplit(seed=3))
    assert {n: [at for at, own in enumerate(o) if own != "train"] for n, o in slices.items()} == {
        "p": [0, 4],
        "q": [],
    }


def test_too_few_slices_are_an_error() -> None:
    with pytest.raises(InputError, match="2 slices cannot be split into 3 groups"):
        divide([Patient("p", "A", (1, 2))], SliceSplit())
    assert [
        len(divide([Patient("p", "A", (1, 2, 3))], SliceSplit())[s]["p"]) for s in ("train", "val", "test")
    ] == [1] * 3
