from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shards.config import HoldoutSplit, PackConfig, SliceSplit
from shards.errors import InputError
from shards.manifest import Manifest, Provenance, ShardRecord
from shards.rows import INDEX_SCHEMA, check_rows

Row = dict[str, Any]

TRAIN_0, TRAIN_1, VAL, TEST = (
    f"shards/{n}.tar" for n in ("train-000000", "train-000001", "val-000000", "test-000000")
)
SIZES = {"image": 700, "mask": 90, "meta": 512}
SAMPLE_BYTES = 512 + 1024 + 512 + 512 + 512 + 512


def row(patient: str, number: int, num_slices: int, split: str, shard: str, place: int) -> Row:
    """A sample of 16 by 16 pixels, the one at ``place`` in its shard."""
    row: Row = {
        "key": f"{patient}_{number:04d}",
        "split": split,
        "shard": shard,
        "patient": patient,
        "institution": "AX",
        "slice": number,
        "num_slices": num_slices,
        "tumour_pixels": number % 100,
    }
    at = place * SAMPLE_BYTES + 512
    for part, size in SIZES.items():
        row |= {f"{part}_offset": at, f"{part}_size": size}
        at += size + -size % 512 + 512
    for channel in range(3):
        row |= {f"mean_{channel}": 50.0 + channel, f"std_{channel}": 0.5 + channel}
    return row


ROWS = [
    row("p_b", 1, 3, "train", TRAIN_0, 0),
    row("p_b", 2, 3, "train", TRAIN_0, 1),
    row("p_b", 3, 3, "train", TRAIN_1, 0),
    row("p_a", 7, 1, "train", TRAIN_1, 1),
    row("p_c", 0, 2, "val", VAL, 0),
    row("p_c", 1, 2, "val", VAL, 1),
    row("p_d", 12345, 1, "test", TEST, 0),
]
MANIFEST = Manifest(
    data_id="0" * 16,
    height=16,
    width=16,
    image_suffix="image.png",
    patients={"train": ["p_a", "p_b"], "val": ["p_c"], "test": ["p_d"]},
    shards=[
        ShardRecord(name=name, split=split, samples=n, bytes=n * SAMPLE_BYTES + 1024, sha256="0" * 64)  # type: ignore[arg-type]
        for name, split, n in (
            (TRAIN_0, "train", 2),
            (TRAIN_1, "train", 2),
            (VAL, "val", 2),
            (TEST, "test", 1),
        )
    ],
    index_sha256="0" * 64,
    provenance=Provenance(source="", source_fingerprint="0" * 64, pack=PackConfig(), split=HoldoutSplit()),
)


def fault_of(rows: list[Row], manifest: Manifest = MANIFEST) -> str:
    with pytest.raises(InputError) as caught:
        check_rows(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), manifest, "s/index.parquet")
    assert str(caught.value).startswith("s/index.parquet")
    assert str(caught.value).endswith("; pack the data again")
    return str(caught.value)


def changed(number: int, **changes: object) -> list[Row]:
    return [row | changes if n == number else row for n, row in enumerate(ROWS)]


def test_rows_that_fit_each_other_and_the_manifest_are_accepted() -> None:
    table = pa.Table.from_pylist(ROWS, schema=INDEX_SCHEMA)
    check_rows(table, MANIFEST, "s/index.parquet")
    check_rows(pa.concat_tables([table.slice(0, 3), table.slice(3)]), MANIFEST, "s/index.parquet")


@pytest.mark.parametrize("column", INDEX_SCHEMA.names)
def test_a_null_is_refused_in_every_column(column: str) -> None:
    assert f"{column} is None, no field may be empty" in fault_of(changed(2, **{column: None}))


@pytest.mark.parametrize(
    ("number", "column", "value", "said"),
    [
        (0, "patient", "p_c", "none of this split's patients in the manifest"),
        (0, "patient", "../p", "none of this split's patients in the manifest"),
        (1, "patient", "", "none of this split's patients in the manifest"),
        (4, "institution", "", "no name of letters and digits"),
        (4, "institution", "<b>", "no name of letters and digits"),
        (5, "institution", "BK", "another than in the patient's row before it"),
        (2, "slice", -1, "not 0 to 999999"),
        (2, "slice", 1_000_000, "not 0 to 999999"),
        (6, "num_slices", 2, "the patient has another number of rows"),
        (6, "num_slices", 0, "the patient has another number of rows"),
        (1, "num_slices", 4, "another than in the patient's row before it"),
        (3, "tumour_pixels", -1, "not 0 to 256"),
        (3, "tumour_pixels", 257, "not 0 to 256"),
        (0, "mean_0", float("nan"), "nothing that grey levels of 0 to 255 can give"),
        (6, "mean_1", -0.5, "nothing that grey levels"),
        (6, "mean_2", 255.5, "nothing that grey levels"),
        (6, "std_0", 0.0, "nothing that grey levels"),
        (6, "std_1", float("inf"), "nothing that grey levels"),
        (1, "mean_0", 51.0, "another than in the patient's row before it"),
        (5, "std_2", 51.0, "another than in the patient's row before it"),
        (0, "image_size", 0, "not 1 to 4892 bytes"),
        (0, "image_size", -512, "not 1 to 4892 bytes"),
        (0, "image_size", 4893, "not 1 to 4892 bytes"),
        (0, "mask_size", 4145, "not 1 to 4144 bytes"),
        (0, "meta_size", 4097, "not 1 to 4096 bytes"),
        (0, "image_offset", 0, "by the members before it 512"),
        (1, "image_offset", 513 + SAMPLE_BYTES, f"by the members before it {512 + SAMPLE_BYTES}"),
        (1, "mask_offset", -1, "by the members before it 5632"),
        (4, "meta_offset", 1 << 62, "by the members before it 3072"),
        (5, "image_offset", 512, f"by the members before it {512 + SAMPLE_BYTES}"),
    ],
)
def test_a_value_that_cannot_be_true_is_refused_with_shard_and_key(
    number: int, column: str, value: object, said: str
) -> None:
    fault = fault_of(changed(number, **{column: value}))
    assert f": {ROWS[number]['shard']}: {ROWS[number]['key']}: {column} is " in fault
    assert said in fault


@pytest.mark.parametrize(
    "key", ["p_b_0001", "p_b_3", "p_b_0003.x", "../p_b_0003", "pipe:p_b_0003", "p\nb_0003", ""]
)
def test_a_key_is_its_patient_and_slice_and_nothing_else(key: str) -> None:
    fault = fault_of(changed(2, key=key))
    assert f"{TRAIN_1}: " in fault
    assert "not its patient and four digits of its slice" in fault
    assert fault.isprintable()


def test_a_member_of_another_length_moves_those_after_it() -> None:
    fault = fault_of(changed(0, meta_size=513))
    assert f"{TRAIN_0}: p_b_0002: image_offset is 4096, by the members before it 4608" in fault
    assert f"{TRAIN_1}: its members make 7680 bytes, the manifest says 8192" in fault_of(
        [
            *ROWS[:3],
            ROWS[3] | {"meta_size": 512, "mask_size": 90, "image_size": 100} | offsets(100),
            *ROWS[4:],
        ]
    )


def offsets(image_size: int) -> Row:
    """Where the members of the second sample of a shard lie, behind an image of at most a block."""
    assert image_size <= 512
    first = SAMPLE_BYTES + 512
    return {"image_offset": first, "mask_offset": first + 1024, "meta_offset": first + 2048}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (ROWS[1:], f"the manifest gives {TRAIN_0} 2 samples, the index 1"),
        (ROWS[:-1], f"the manifest gives {TEST} 1 samples, the index 0"),
        ([*ROWS, ROWS[-1]], f"the manifest gives {TEST} 1 samples, the index 2"),
        (
            [*ROWS[2:4], *ROWS[:2], *ROWS[4:]],
            f"{TRAIN_1}: p_b_0003: shard is {TRAIN_1}, out of the manifest's order",
        ),
        (changed(0, split="test"), f"{TRAIN_0}: p_b_0001: split is test, not its shard's"),
        (changed(0, split=""), f"{TRAIN_0}: p_b_0001: split is '', not its shard's"),
        (
            changed(4, shard="pipe:x"),
            "'pipe:x': p_c_0000: shard is 'pipe:x', which the manifest does not list",
        ),
        ([ROWS[1], ROWS[0], *ROWS[2:]], f"{TRAIN_0}: p_b_0001: slice is 1, not the next after"),
        ([ROWS[0], ROWS[0], *ROWS[2:]], f"{TRAIN_0}: p_b_0001: slice is 1, not the next after"),
    ],
    ids=[
        "first less",
        "last less",
        "last twice",
        "shards swapped",
        "other split",
        "no split",
        "odd shard",
        "swapped",
        "twice",
    ],
)
def test_rows_stand_shard_by_shard_and_slice_by_slice(rows: list[Row], said: str) -> None:
    assert said in fault_of(rows)


def test_a_patient_comes_once_and_whole() -> None:
    apart = [
        row("p_b", 1, 2, "train", TRAIN_0, 0),
        row("p_a", 7, 1, "train", TRAIN_0, 1),
        row("p_b", 2, 2, "train", TRAIN_1, 0),
        row("p_a", 8, 1, "train", TRAIN_1, 1),
    ]
    assert f"{TRAIN_1}: p_b_0002: patient is p_b, whose rows ended further up" in fault_of(
        [*apart, *ROWS[4:]]
    )


def test_every_patient_of_the_manifest_has_rows() -> None:
    patients = MANIFEST.patients | {"val": ["p_c", "p_e"]}
    assert "has no sample of p_e, a val patient" in fault_of(
        ROWS, MANIFEST.model_copy(update={"patients": patients})
    )


@pytest.mark.parametrize("column", INDEX_SCHEMA.names)
def test_no_column_can_be_changed_at_random(column: str) -> None:
    """Every value is bound to those of other rows or to a range."""
    random = np.random.default_rng(0)
    values: dict[pa.DataType, Callable[[], object]] = {
        pa.string(): lambda: "".join(random.choice(list("pab_0123./"), 6)),
        pa.int32(): lambda: int(random.integers(-(1 << 31), 1 << 31)),
        pa.int64(): lambda: int(random.integers(-(1 << 62), 1 << 62)),
        pa.float32(): lambda: float(np.float32(random.normal(scale=1e6))),
    }
    for _ in range(20):
        number = int(random.choice([n for n, row in enumerate(ROWS) if row["num_slices"] > 1]))
        fault_of(changed(number, **{column: values[INDEX_SCHEMA.field(column).type]()}))


SPLIT_ROWS = [
    row("p_a", 1, 5, "train", TRAIN_0, 0),
    row("p_a", 4, 5, "train", TRAIN_0, 1),
    row("p_b", 0, 2, "train", TRAIN_1, 0),
    row("p_a", 2, 5, "val", VAL, 0),
    row("p_a", 3, 5, "test", TEST, 0),
    row("p_a", 5, 5, "test", TEST, 1),
    row("p_b", 1, 2, "test", TEST, 2),
]
SPLIT_MANIFEST = MANIFEST.model_copy(
    update={
        "patients": {"train": ["p_a", "p_b"], "val": ["p_a"], "test": ["p_a", "p_b"]},
        "shards": [
            ShardRecord(name=name, split=split, samples=n, bytes=n * SAMPLE_BYTES + 1024, sha256="0" * 64)  # type: ignore[arg-type]
            for name, split, n in (
                (TRAIN_0, "train", 2),
                (TRAIN_1, "train", 1),
                (VAL, "val", 1),
                (TEST, "test", 3),
            )
        ],
        "provenance": MANIFEST.provenance.model_copy(update={"split": SliceSplit()}),
    }
)


def split_changed(number: int, **changes: object) -> list[Row]:
    return [row | changes if n == number else row for n, row in enumerate(SPLIT_ROWS)]


def test_where_slices_are_split_a_patient_is_whole_over_all_splits() -> None:
    check_rows(pa.Table.from_pylist(SPLIT_ROWS, schema=INDEX_SCHEMA), SPLIT_MANIFEST, "s/index.parquet")
    # The very same rows are refused under any other split.
    by_patient = SPLIT_MANIFEST.model_copy(update={"provenance": MANIFEST.provenance})
    assert "patient is p_a, whose rows ended further up" in fault_of(SPLIT_ROWS, by_patient)


@pytest.mark.parametrize(
    ("number", "changes", "said"),
    [
        (3, {"patient": "p_b", "key": "p_b_0002"}, "none of this split's patients in the manifest"),
        (1, {"slice": 1, "key": "p_a_0001"}, "slice is 1, not after the row before it"),
        (5, {"slice": 6, "key": "p_a_0006"}, "slice is 6, not the next after the row before it"),
        (3, {"slice": 4, "key": "p_a_0004"}, "not the next after the row before it"),
        (6, {"num_slices": 3}, "num_slices is 3, another than in the patient's row before it"),
        (4, {"mean_1": 9.0}, "p_a_0004: mean_1 is 51.0, another than in the patient's row before it"),
        (3, {"institution": "BK"}, "institution is BK, another than in the patient's row before it"),
    ],
)
def test_where_slices_are_split_rows_agree_across_splits(
    number: int, changes: dict[str, object], said: str
) -> None:
    assert said in fault_of(split_changed(number, **changes), SPLIT_MANIFEST)


def test_where_slices_are_split_none_may_be_lacking() -> None:
    less = [own | {"num_slices": 6} if own["patient"] == "p_a" else own for own in SPLIT_ROWS]
    assert "num_slices is 6, the patient has another number of rows" in fault_of(less, SPLIT_MANIFEST)
    patients = SPLIT_MANIFEST.patients | {"val": ["p_a", "p_b"]}
    assert "has no sample of p_b, a val patient" in fault_of(
        SPLIT_ROWS, SPLIT_MANIFEST.model_copy(update={"patients": patients})
    )
