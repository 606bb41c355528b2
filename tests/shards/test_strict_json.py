import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.strict_json import parse

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3))


@given(VALUES)
def test_what_json_can_say_comes_back(value: object) -> None:
    assert parse(json.dumps(value).encode()) == value
    assert parse(json.dumps(value, ensure_ascii=False).encode()) == value


@given(st.binary(max_size=40))
def test_any_other_bytes_are_refused_as_a_wrong_value(data: bytes) -> None:
    try:
        parse(data)
    except ValueError:
        return
    json.loads(data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 1}}', "the name 'c' comes twice in one object"),
        (b'{"a": 1, "\\u0061": 2}', "the name 'a' comes twice"),
        (b"[NaN]", "NaN is no finite number"),
        (b"-Infinity", "-Infinity is no finite number"),
        (b"1e999", "1e999 is no finite number"),
        (b"9" * 5000, "Exceeds the limit"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'"\xff"', "invalid start byte"),
        ('"é"'.encode("utf-16"), "invalid start byte"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"{} {}", "Extra data"),
        (b"", "Expecting value"),
    ],
)
def test_what_readers_would_differ_over_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse(data)
