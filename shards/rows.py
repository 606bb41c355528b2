"""The rows of an index, checked all at once: what each says must be possible, and all of them must fit together."""

import operator
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shards.errors import InputError

if TYPE_CHECKING:
    from shards.manifest import Manifest

INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("split", pa.string()),
        ("shard", pa.string()),
        ("patient", pa.string()),
        ("institution", pa.string()),
        ("slice", pa.int32()),
        ("num_slices", pa.int32()),
        ("tumour_pixels", pa.int32()),
        ("image_offset", pa.int64()),
        ("image_size", pa.int32()),
        ("mask_offset", pa.int64()),
        ("mask_size", pa.int32()),
        ("meta_offset", pa.int64()),
        ("meta_size", pa.int32()),
        *((f"{figure}_{c}", pa.float32()) for figure in ("mean", "std") for c in range(3)),
    ]
)

_PARTS = ("image", "mask", "meta")
_FIGURES = [f"{figure}_{c}" for figure in ("mean", "std") for c in range(3)]
_INSTITUTION = re.compile(r"[A-Za-z0-9_+ -]{1,64}")
_BLOCK = 512  # of a tar: a header takes one, a payload is filled up to whole ones

Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]


def check_rows(table: pa.Table, manifest: "Manifest", where: str) -> None:
    """Check every row of an index of ``INDEX_SCHEMA`` against the others and the manifest.

    Rows stand shard by shard in the manifest's order, for a sample's number says where it lies; a patient's
    slices follow each other without gaps, or in each split alone where slices were split; members fill their shard to
    the last block.

    Raises:
        InputError: the first row that cannot be true; it names the index as ``where``, the shard and the key.
    """
    rows = _Rows(table, manifest, where)
    rows.check_nulls()
    rows.check_shards()
    rows.check_patients()
    rows.check_keys()
    rows.check_figures()
    rows.check_volumes()
    rows.check_spans()


@dataclass(frozen=True)
class _Rows:
    table: pa.Table
    manifest: "Manifest"
    where: str

    def check_nulls(self) -> None:
        for name in self.table.column_names:
            column = self.table[name]
            if column.null_count:
                self._refuse(numbers(column.is_null()), name, "no field may be empty")

    def check_shards(self) -> None:
        """Each shard's samples, all of its split, in the manifest's order."""
        shards = self.manifest.shards
        number_of = {s.name: n for n, s in enumerate(shards)}
        shard, names = self._codes("shard")
        number = np.asarray([number_of.get(name, -1) for name in names])[shard]
        self._refuse(number < 0, "shard", "which the manifest does not list")
        counts = np.bincount(number, minlength=len(shards))
        for record, found in zip(shards, counts.tolist(), strict=True):
            if found != record.samples:
                raise InputError(
                    f"{self.where}: the manifest gives {record.name} {record.samples} samples, the index {found}; "
                    "pack the data again"
                )
        self._refuse(
            number != np.repeat(np.arange(len(shards)), counts), "shard", "out of the manifest's order"
        )
        split, splits = self._codes("split")
        right = np.asarray([s.split for s in shards], object)[number]
        self._refuse(np.asarray(splits, object)[split] != right, "split", "not its shard's")

    def check_patients(self) -> None:
        """The manifest's patients, all of them and each in its split."""
        listed = {split: set(patients) for split, patients in self.manifest.patients.items()}
        patient, names = self._codes("patient")
        split, splits = self._codes("split")
        right: Flags = np.asarray([[name in listed[own] for own in splits] for name in names])  # type: ignore[index]
        self._refuse(~right[patient, split], "patient", "none of this split's patients in the manifest")
        there = np.zeros_like(right)
        there[patient, split] = True
        found = {own: {names[n] for n in np.flatnonzero(there[:, s])} for s, own in enumerate(splits)}
        for own, patients in listed.items():
            for absent in sorted(patients - found.get(own, set()))[:1]:
                raise InputError(
                    f"{self.where} has no sample of {absent}, a {own} patient of the manifest; pack the data again"
                )
        institution, names = self._codes("institution")
        odd = np.asarray([_INSTITUTION.fullmatch(name) is None for name in names])
        self._refuse(odd[institution], "institution", "no name of letters and digits")

    def check_keys(self) -> None:
        """Keys follow from patients, whose names are safe, and slices."""
        number = self._ints("slice")
        self._refuse((number < 0) | (number > 999_999), "slice", "not 0 to 999999")
        patients = self.table["patient"].to_pylist()
        right = (f"{patient}_{slice_:04d}" for patient, slice_ in zip(patients, number.tolist(), strict=True))
        self._refuse(
            np.fromiter(map(operator.ne, self.table["key"].to_pylist(), right), bool, len(number)),
            "key",
            "not its patient and four digits of its slice",
        )

    def check_figures(self) -> None:
        """Counts of pixels, and grey levels of uint8 sequences."""
        pixels = self.manifest.height * self.manifest.width
        tumour = self._ints("tumour_pixels")
        self._refuse((tumour < 0) | (tumour > pixels), "tumour_pixels", f"not 0 to {pixels}")
        for name in _FIGURES:
            values = numbers(self.table[name])
            possible = (values >= 0) & (values <= 255)
            if name.startswith("std"):
                possible &= values > 0
            self._refuse(~possible, name, "nothing that grey levels of 0 to 255 can give")

    def check_volumes(self) -> None:
        """A patient's rows follow each other, slice by slice, and agree on the patient."""
        patient, number = self._codes("patient")[0], self._ints("slice")
        order = np.arange(len(patient))
        if self.manifest.splits_patients:
            split, splits = self._codes("split")
            group = patient * len(splits) + split
            first = self._check_together(group)
            back = np.append(False, number[1:] <= number[:-1]) & ~first
            self._refuse(back, "slice", "not after the row before it")
            # What holds of a volume holds of its rows from all splits together, in the order of the slices.
            order = np.lexsort((number, patient))
        else:
            self._check_together(patient)
        self._check_whole(patient, number, order)

    def _check_together(self, group: Ints) -> Flags:
        """Whether each row is the first of its group; raises where one goes on after others."""
        first: Flags = np.append(True, group[1:] != group[:-1])
        starts = np.flatnonzero(first)
        again = np.ones(len(group), bool)
        again[starts[np.unique(group[starts], return_index=True)[1]]] = False
        self._refuse(first & again, "patient", "whose rows ended further up")
        return first

    def _check_whole(self, patient: Ints, number: Ints, order: Ints) -> None:
        """In ``order``, which has a patient's rows together, slices have no gaps and rows agree on the patient."""
        first: Flags = np.append(True, patient[order][1:] != patient[order][:-1])
        starts, num_slices = np.flatnonzero(first), self._ints("num_slices")

        def refuse(wrong: Flags, column: str, why: str) -> None:
            in_place = np.empty_like(wrong)
            in_place[order] = wrong
            self._refuse(in_place, column, why)

        def changes(values: NDArray[Any]) -> Flags:
            changed: Flags = np.append(False, values[1:] != values[:-1]) & ~first
            return changed

        steps = number[order] - np.arange(len(number))
        refuse(changes(steps), "slice", "not the next after the row before it")
        shared = {"institution": self._codes("institution")[0], "num_slices": num_slices}
        shared |= {name: numbers(self.table[name]) for name in _FIGURES}
        for name, values in shared.items():
            refuse(changes(values[order]), name, "another than in the patient's row before it")
        wrong = np.zeros(len(patient), bool)
        wrong[starts] = num_slices[order][starts] != np.diff(np.append(starts, len(patient)))
        refuse(wrong, "num_slices", "the patient has another number of rows")

    def check_spans(self) -> None:
        """Members no larger than they can be, one behind the other, which fill their shard."""
        size = np.stack([self._ints(f"{part}_size") for part in _PARTS], axis=1)
        for part, sizes, most in zip(_PARTS, size.T, self._most_bytes(), strict=True):
            self._refuse((sizes < 1) | (sizes > most), f"{part}_size", f"not 1 to {most} bytes")
        shards = self.manifest.shards
        num_samples = np.asarray([s.samples for s in shards])
        length = _BLOCK + size + -size % _BLOCK
        stop = np.cumsum(length).reshape(length.shape)
        shard_stop = stop[np.cumsum(num_samples) - 1, -1]
        shard_start = np.append(0, shard_stop[:-1])
        offset = stop - length + _BLOCK - np.repeat(shard_start, num_samples)[:, None]
        for part, due in zip(_PARTS, offset.T, strict=True):
            wrong = self._ints(f"{part}_offset") != due
            self._refuse(wrong, f"{part}_offset", f"by the members before it {due[wrong.argmax()]}")
        for shard, total in zip(shards, (shard_stop - shard_start + 2 * _BLOCK).tolist(), strict=True):
            if shard.bytes != total:
                raise InputError(
                    f"{self.where}: {shard.name}: its members make {total} bytes, the manifest says "
                    f"{shard.bytes}; pack the data again"
                )

    def _most_bytes(self) -> tuple[int, int, int]:
        """Largest image, mask and JSON: raw pixels, and what an encoding that saves nothing adds to them."""
        height, width = self.manifest.height, self.manifest.width
        image, mask = height * width * 3, height * -(-width // 8)
        return image + image // 64 + height + 4096, mask + mask // 64 + height + 4096, 4096

    def _refuse(self, wrong: Flags, column: str, why: str) -> None:
        """Raise for the first wrong row, if there is one."""
        if wrong.any():
            row = self.table.slice(int(wrong.argmax()), 1).to_pylist()[0]
            shard, key, value = (_shown(row[name]) for name in ("shard", "key", column))
            raise InputError(f"{self.where}: {shard}: {key}: {column} is {value}, {why}; pack the data again")

    def _ints(self, name: str) -> Ints:
        return numbers(self.table[name]).astype(np.int64)

    def _codes(self, name: str) -> tuple[Ints, list[str]]:
        """A text column as numbers of its distinct values, and these."""
        column = self.table[name].combine_chunks().dictionary_encode()
        return numbers(column.indices).astype(np.int64), column.dictionary.to_pylist()


def numbers(column: pa.ChunkedArray | pa.Array) -> NDArray[Any]:
    """A column of numbers or truth values, without nulls.

    ``to_numpy`` would load pandas where that is installed, which takes a third of a second.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_boolean(array.type):
        return numbers(array.cast(pa.uint8())).astype(bool)
    return np.from_dlpack(array)


def _shown(value: object) -> str:
    """A value of any origin for a message: plain when harmless, else quoted, and never long."""
    text = str(value)
    return text if re.fullmatch(r"[\w+ ./-]{1,100}", text, re.ASCII) else repr(text[:100])
