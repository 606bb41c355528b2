from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shards.errors import InputError
from shards.layout import find_patients
from shards.store import Entry, open_store

FOLDER = "TCGA_CS_4941_19960909"


def write_slices(root: Path, folder: str, numbers: list[int]) -> None:
    """Files of the right names; what is in them does not matter here."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    for n in numbers:
        (root / folder / f"{folder}_{n}.tif").write_bytes(b"image")
        (root / folder / f"{folder}_{n}_mask.tif").write_bytes(b"mask")


@dataclass
class CountingStore:
    """Lists given keys and counts how often it is asked."""

    keys: list[str]
    uri: str = "counting"
    lists: int = field(default=0)

    def list(self, prefix: str = "") -> list[Entry]:
        self.lists += 1
        return [Entry(key, 1) for key in sorted(self.keys) if key.startswith(prefix)]


def test_patients_are_found_in_the_order_of_folders_and_slices_in_that_of_numbers(tmp_path: Path) -> None:
    write_slices(tmp_path, "TCGA_HT_A61B_19991127", [1])
    write_slices(tmp_path, FOLDER, list(range(1, 12)))
    patients, problems = find_patients(open_store(str(tmp_path)))
    assert problems == []
    assert [(p.patient, p.folder, p.institution) for p in patients] == [
        ("TCGA_CS_4941", FOLDER, "CS"),
        ("TCGA_HT_A61B", "TCGA_HT_A61B_19991127", "HT"),
    ]
    assert [s.number for s in patients[0].slices] == list(range(1, 12))
    assert patients[0].slices[9].image == f"{FOLDER}/{FOLDER}_10.tif"
    assert patients[0].slices[9].mask == f"{FOLDER}/{FOLDER}_10_mask.tif"


def test_the_store_is_listed_once() -> None:
    store = CountingStore([f"{FOLDER}/{FOLDER}_1.tif", f"{FOLDER}/{FOLDER}_1_mask.tif"])
    find_patients(store)  # type: ignore[arg-type]
    assert store.lists == 1


def test_other_files_are_ignored_and_so_is_a_deeper_copy(tmp_path: Path) -> None:
    write_slices(tmp_path, FOLDER, [1])
    write_slices(tmp_path / "archive" / "copy", FOLDER, [1, 2])
    write_slices(tmp_path / ".trash", FOLDER, [1])
    for name in (
        "data.csv",
        "README.md",
        f"{FOLDER}/notes.txt",
        f"{FOLDER}/._{FOLDER}_1.tif",
        "overview.tif",
    ):
        (tmp_path / name).write_text("x")
    (patient,), problems = find_patients(open_store(str(tmp_path)))
    assert problems == []
    assert len(patient.slices) == 1


@pytest.mark.parametrize(
    ("folder", "patient", "institution"),
    [
        ("TCGA_DU_5849_19950405", "TCGA_DU_5849", "DU"),
        ("TCGA_FG_A60K", "TCGA_FG_A60K", "FG"),
        ("PHANTOM_AX_0001_20000101", "PHANTOM_AX_0001", "AX"),
        ("patient7", "patient7", "unknown"),
        ("my_patient_12345678", "my_patient", "unknown"),
        ("a_long_name_of_one", "a_long_name_of_one", "unknown"),
    ],
)
def test_patient_and_institution_come_from_the_folder(folder: str, patient: str, institution: str) -> None:
    store = CountingStore([f"{folder}/{folder}_1.TIF", f"{folder}/{folder}_1_mask.tiff"])
    (found,), _ = find_patients(store)  # type: ignore[arg-type]
    assert (found.patient, found.institution) == (patient, institution)


def test_every_problem_of_names_pairs_and_numbers_shows_at_once() -> None:
    a, b, second = "TCGA_CS_0001_19960909", "TCGA_CS_0002_19960909", "TCGA_CS_0001_20000101"
    pair = ["{0}/{0}_{1}.tif", "{0}/{0}_{1}_mask.tif"]
    keys = [p.format(a, n) for n in (1, 2, 5, 6, 9) for p in pair]
    keys += [f"{a}/{a}_3.tif", f"{a}/{a}_7_mask.tif", f"{a}/{a}_02.tif", f"{a}/{a}_mask.tif", f"{a}/scan.tif"]
    keys += [p.format(b, n) for n in (3, 4) for p in pair]
    keys += [p.format(second, 1) for p in pair]
    keys += ["figures/one.tif", "figures/two.tif"]
    patients, problems = find_patients(CountingStore(keys))  # type: ignore[arg-type]

    assert [s.number for s in patients[0].slices] == [1, 2, 5, 6, 9]
    found = {(p.severity, p.file): p.what for p in problems}
    assert found == {
        ("error", f"{a}/{a}_3.tif"): "has no mask",
        ("error", f"{a}/{a}_7_mask.tif"): "has no image",
        ("error", f"{a}/{a}_2.tif"): f"has the slice number of {a}/{a}_02.tif",
        ("error", f"{a}/{a}_mask.tif"): "has an unreadable name",
        ("error", f"{a}/scan.tif"): "has an unreadable name",
        ("error", f"{a}/"): "lacks slices 4, 8 of 1 to 9",
        ("warning", f"{b}/"): "numbers its slices from 3, not from 1",
        ("error", f"{second}/"): f"is a second folder of TCGA_CS_0001, beside {a}/",
        ("error", "figures/"): "holds TIFF files of other names only",
    }
    assert all(p.remedy for p in problems)


@pytest.mark.parametrize("keys", [["data.csv"], [f"{FOLDER}/{FOLDER}_1.tif"], [f"{FOLDER}_1.tif"]])
def test_a_place_without_pairs_is_named_with_the_layout_it_should_have(keys: list[str]) -> None:
    with pytest.raises(
        InputError, match=r"counting has 1 files, such as .*<folder>_<n>_mask\.tif.*data\.source"
    ):
        find_patients(CountingStore(keys))  # type: ignore[arg-type]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere is missing or empty; expected <folder>/"):
        find_patients(open_store(str(tmp_path / "nowhere")))


@pytest.mark.parametrize("folder", ["patient.7", "pät7", "p" * 65])
def test_a_name_that_no_shard_can_hold_is_an_error(folder: str) -> None:
    store = CountingStore([f"{folder}/{folder}_1.tif", f"{folder}/{folder}_1_mask.tif"])
    _, (problem,) = find_patients(store)  # type: ignore[arg-type]
    assert (problem.severity, problem.file) == ("error", f"{folder}/")
    assert f"the name '{folder}', which no shard can hold" in problem.what


def test_a_patient_may_have_a_space_and_64_letters(tmp_path: Path) -> None:
    for folder in ("patient 7", "p" * 64):
        write_slices(tmp_path, folder, [1])
    assert find_patients(open_store(str(tmp_path)))[1] == []
