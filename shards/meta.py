"""A sample's JSON member: what it must have, what it may have, and what of it the index does not say."""

from dataclasses import dataclass
from typing import Any

from shards.errors import InputError
from shards.strict_json import parse

SAID_TWICE = ("patient", "slice", "num_slices", "institution", "tumour_pixels")
"""What both the index and a sample's JSON say."""

_REQUIRED = {*SAID_TWICE, "missing", "mean", "std"}
_OPTIONAL = {"spacing_mm"}


@dataclass(frozen=True)
class Facts:
    """What only the JSON says of a sample."""

    missing: tuple[str, ...]
    """Sequences that the patient lacks: copies of FLAIR stand in their place."""
    spacing_mm: tuple[float, float, float] | None
    """Millimetres between neighbouring slices, rows and columns; ``None`` where they are not known."""


def decode_meta(data: bytes, name: str) -> dict[str, Any]:
    """The fields of a JSON member.

    Raises:
        InputError: it is no JSON, lacks a field, has an unknown one, or ``missing`` or ``spacing_mm`` cannot be true.
    """
    try:
        meta = parse(data)
    except ValueError as error:
        raise InputError(f"{name}: is no JSON ({error})") from error
    if not isinstance(meta, dict) or meta.keys() - _OPTIONAL != _REQUIRED:
        found = ", ".join(sorted(meta)) if isinstance(meta, dict) else type(meta).__name__
        raise InputError(f"{name}: has {found[:200]!r}, a sample has {', '.join(sorted(_REQUIRED))}")
    if meta["missing"] not in ([], ["pre"], ["post"], ["pre", "post"]):
        raise InputError(
            f"{name}: says that {str(meta['missing'])[:80]} is missing; only pre and post can be"
        )
    if "spacing_mm" in meta and not _is_spacing(meta["spacing_mm"]):
        raise InputError(
            f"{name}: says spacing_mm {str(meta['spacing_mm'])[:80]!r}, not three lengths above 0 and up to 100"
        )
    return meta


def facts(meta: dict[str, Any]) -> Facts:
    """Of what ``decode_meta`` gave."""
    spacing_mm = None
    if "spacing_mm" in meta:
        slices, rows, columns = meta["spacing_mm"]
        spacing_mm = float(slices), float(rows), float(columns)
    return Facts(tuple(meta["missing"]), spacing_mm)


def _is_spacing(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(type(v) in (int, float) and 0 < v <= 100 for v in value)
    )
