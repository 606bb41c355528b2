"""JSON from strangers: read as RFC 8259 defines it, and refused where readers would differ."""

import json
import math
from typing import Any, NoReturn


def parse(data: bytes) -> Any:
    """The value that UTF-8 JSON says.

    Raises:
        ValueError: it is not UTF-8 or not JSON, a name comes twice in one object, a number is not finite or out of
            all proportion, or it is nested too deeply.
    """
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_number,
            parse_float=_finite,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice[:60]!r} comes twice in one object")
    return found


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _no_number(digits)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:60]} is no finite number")
