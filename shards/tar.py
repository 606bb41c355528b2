"""The members of a shard, read strictly: a tar of the form that ``ShardWriter`` writes, and no other.

A ustar header (POSIX.1-1988) has sixteen fields, and readers differ over what odd ones mean.  Here a header tells
a name and a size; all its 512 bytes must then be those that the writer gives to that name and size.
"""

import re
import struct
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from mmap import mmap
from tarfile import BLOCKSIZE
from typing import NamedTuple

from shards.errors import InputError

Bytes = bytes | memoryview | mmap

# No slash, so no folders and no way out of one; no colon, so no address; ASCII, so one spelling of each name.
_NAME = re.compile(rb"[A-Za-z0-9_+-][A-Za-z0-9_+ -]*(?:\.[A-Za-z0-9_+-]+)*")
# Name, mode and owner, octal size, time, checksum, and the rest: type, link, magic, device, prefix, filling.
_FIELDS = struct.Struct("100s 24s 11s 13s 8s 356s")
_FIXED = (
    b"0000644\0" + b"0000000\0" * 2,
    b"\0" + b"0" * 11 + b"\0",
    (b"0" + bytes(100) + b"ustar\x0000").ljust(356, b"\0"),
)
_BLANK_CHECKSUM = 8 * ord(" ")  # The checksum is taken with spaces in its own place.
_FIXED_SUM = sum(sum(part) for part in _FIXED) + _BLANK_CHECKSUM
_ZEROS = bytes(BLOCKSIZE)
_END = bytes(2 * BLOCKSIZE)
_REMEDY = "copy the shard again, or pack the data again"


class Member(NamedTuple):
    """A member's name, and where its payload lies in the shard, in bytes."""

    name: str
    offset: int
    size: int


def members(data: Bytes) -> list[Member]:
    """All members of a shard, in order.

    Raises:
        InputError: a byte outside the payloads is not as ``ShardWriter`` writes it, a name is unsafe or comes
            twice, or the shard ends early or late; it names the member and where its header begins.
    """
    return list(_walk(data))


def check_contents(data: Bytes, shard: str, expected: Sequence[tuple[str, int, int]]) -> None:
    """Check that a shard holds exactly the expected members: their names, offsets and sizes, in this order.

    Raises:
        InputError: it does not; the message names the shard and the first member that is wrong.
    """
    with closing(_walk(data)) as walk:
        for name, offset, size in expected:
            found = _next(walk, f"{shard}: {name}")
            if found is None:
                raise InputError(f"{shard}: {name}: is not in the shard, which ends before it; {_REMEDY}")
            if found != (name, offset, size):
                raise InputError(
                    f"{shard}: {name}: the index says {size} bytes at {offset}, the shard has in its place "
                    f"{found.name}, {found.size} bytes at {found.offset}; {_REMEDY}"
                )
        surplus = _next(walk, f"{shard}: after its last member")
        if surplus is not None:
            raise InputError(f"{shard}: {surplus.name}: is in the shard, but not in the index; {_REMEDY}")


def _next(walk: Iterator[Member], wanted: str) -> Member | None:
    try:
        return next(walk, None)
    except InputError as error:
        raise InputError(f"{wanted}: {error}") from error


def _walk(data: Bytes) -> Generator[Member, None, None]:
    seen: set[bytes] = set()
    at = 0
    with memoryview(data) as view:
        total = len(view)
        while at < total and view[at]:
            name, size = _parse(view, at)
            if name in seen:
                raise _refusal(name, at, "comes twice")
            seen.add(name)
            start = at + BLOCKSIZE
            end = start + size
            stop = end + -size % BLOCKSIZE
            if stop > total:
                raise _refusal(name, at, f"has {size} bytes by its header, {total - start} are left")
            if bytes(view[end:stop]) != _ZEROS[: stop - end]:
                raise _refusal(name, at, "is not filled up with zeros")
            yield Member(name.decode("ascii"), start, size)
            at = stop
        if view[at:] != _END:
            raise InputError(
                f"byte {at}: neither a member begins there, nor is it {len(_END)} zeros to the shard's end "
                f"({total - at} bytes follow); {_REMEDY}"
            )


def _parse(view: memoryview, at: int) -> tuple[bytes, int]:
    """Name and size of a member whose header has not a byte more to say."""
    try:
        padded_name, owner, digits, time, checksum, rest = _FIELDS.unpack_from(view, at)
    except struct.error:
        raise InputError(f"byte {at}: the shard ends in the middle of a header; {_REMEDY}") from None
    name = padded_name.rstrip(b"\0")
    if (
        (owner, time, rest) == _FIXED
        and _NAME.fullmatch(name)
        and not digits.strip(b"01234567")
        and checksum == b"%06o\0 " % (_FIXED_SUM + sum(name) + sum(digits))
    ):
        return name, int(digits, 8)
    raise _refusal(name, at, _fault(bytes(view[at : at + BLOCKSIZE])))


def _fault(header: bytes) -> str:
    """What is wrong with a whole header, the most telling first."""
    name, prefix = header[:100].rstrip(b"\0"), header[345:500].rstrip(b"\0")
    if header[257:265] != b"ustar\x0000":
        return "has no ustar header"
    if header[148:156] != b"%06o\0 " % (sum(header) - sum(header[148:156]) + _BLANK_CHECKSUM):
        return "has a damaged header, the checksum is wrong"
    if header[156:157] != b"0":
        return f"is of type {_shown(header[156:157])}, not a regular file"
    if prefix:
        return f"lies in a folder, {_shown(prefix)}"
    if not _NAME.fullmatch(name):
        return "is an unsafe name; a member's has letters, digits, '_', '+', '-', spaces, and dots before suffixes"
    return "has more in its header than a name and a size"


def _refusal(name: bytes, at: int, what: str) -> InputError:
    return InputError(f"{_shown(name)} at byte {at} {what}; {_REMEDY}")


def _shown(text: bytes) -> str:
    """Bytes of any origin for a message: as they are when harmless, else quoted."""
    return text.decode("ascii") if _NAME.fullmatch(text) else repr(text)[1:]
