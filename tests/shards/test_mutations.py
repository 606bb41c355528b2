"""1,000 seeded mutations of a packed data set: each is refused, by name, by reader and check alike.

*Accidents* change bytes and leave all hashes as they were.  *Lies* are told by a packer that is hostile or broken:
manifest and index vouch for the damage.  ``HIDDEN`` are lies about what the reader has no need of, or cannot know
without the JSON: they are for ``check_packed`` alone to find.  What nothing can find is another truth: pixels, masks
and counts changed together are another data set, and ``provenance.source`` is a remark.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import damage_to_bytes
import damage_to_index
import damage_to_manifest
import damage_to_members
import pytest
from packed_set import Damage, PackedSet

from shards.check import check_packed
from shards.config import StoreConfig
from shards.errors import InputError
from shards.reader import PackedData

ACCIDENTS = damage_to_bytes.ACCIDENTS
LIES = {
    f"{lied_about}: {kind}": damage
    for lied_about, kinds in (
        ("bytes", damage_to_bytes.LIES),
        ("members", damage_to_members.LIES),
        ("index", damage_to_index.LIES),
        ("manifest", damage_to_manifest.LIES),
    )
    for kind, damage in kinds.items()
}
HIDDEN = (
    damage_to_bytes.HIDDEN | damage_to_members.HIDDEN | damage_to_index.HIDDEN | damage_to_manifest.HIDDEN
)
TIMES = 8
"""How often each kind is done, with another seed each time."""


@dataclass(frozen=True)
class Workplace:
    """A copy of the data set, damaged and put right again in place."""

    folder: Path
    whole: PackedSet

    def faults(self, damaged: PackedSet) -> tuple[str | None, str | None]:
        """What the reader says, and what the check says; None from who finds no fault."""
        assert damaged.files != self.whole.files
        damaged.write(self.folder, self.whole.files)
        try:
            return fault_of(read_all, self.folder), fault_of(check, self.folder)
        finally:
            self.whole.write(self.folder, damaged.files)


@pytest.fixture(scope="module")
def workplace(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    workplace = Workplace(tmp_path_factory.mktemp("mutations"), PackedSet.read(packed))
    workplace.whole.write(workplace.folder)
    return workplace


def read_all(folder: Path) -> None:
    """Read every sample of every split as training and scoring do."""
    data = PackedData(str(folder))
    for reader in (data.training("train"), data.training("val"), data.test()):
        try:
            for sample in range(len(reader.index)):
                reader.read(sample)
        finally:
            reader.close()


def check(folder: Path) -> None:
    check_packed(str(folder), StoreConfig())


def fault_of(use: Callable[[Path], None], folder: Path) -> str | None:
    """The refusal; any other error is the test's failure."""
    try:
        use(folder)
    except InputError as error:
        return str(error)
    return None


def mutations(kinds: dict[str, Damage]) -> list[Any]:
    return [pytest.param(kind, damage, id=kind) for kind, damage in kinds.items()]


def assert_names(fault: str | None, names: tuple[str, ...], what: str) -> None:
    assert fault is not None, f"{what} is not noticed"
    assert re.search(r"shards/|manifest\.json|index\.parquet", fault), f"{what}: {fault}"
    assert re.search(r"again|anew|run `bts pack`", fault), f"{what}: no remedy in {fault}"
    for name in names:
        assert name in fault, f"{what}: {name} is not in {fault}"


@pytest.mark.parametrize(("kind", "damage"), mutations(ACCIDENTS | LIES))
def test_reader_and_check_refuse_it_by_name(workplace: Workplace, kind: str, damage: Damage) -> None:
    for seed in range(TIMES):
        damaged = PackedSet(workplace.whole.files)
        names = damage(Random(f"{kind} {seed}"), damaged)
        by_reader, by_check = workplace.faults(damaged)
        assert_names(by_reader, names, f"{kind} {seed}, read")
        # A fault of the index or the manifest as a whole may concern no one sample.
        assert not by_reader.startswith("shards/") or re.search(r"PHANTOM_\w+_\d{4}", by_reader), by_reader
        assert_names(by_check, names, f"{kind} {seed}, checked")


@pytest.mark.parametrize(("kind", "damage"), mutations(HIDDEN))
def test_the_check_refuses_what_the_reader_does_not_look_at(
    workplace: Workplace, kind: str, damage: Damage
) -> None:
    for seed in range(TIMES):
        damaged = PackedSet(workplace.whole.files)
        names = damage(Random(f"{kind} {seed}"), damaged)
        _, by_check = workplace.faults(damaged)
        assert_names(by_check, names, f"{kind} {seed}, checked")


def test_there_are_a_thousand_of_them() -> None:
    assert TIMES * (len(ACCIDENTS) + len(LIES) + len(HIDDEN)) >= 1000


def test_the_whole_data_set_is_refused_by_nobody(workplace: Workplace) -> None:
    assert fault_of(read_all, workplace.folder) is None
    assert fault_of(check, workplace.folder) is None
