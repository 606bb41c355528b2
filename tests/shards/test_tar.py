import io
import re
import tarfile
from collections.abc import Callable
from mmap import ACCESS_READ, mmap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import InputError
from shards.tar import Member, check_contents, members
from shards.writer import ShardWriter

WORDS = st.text("abzABZ019_+-", min_size=1, max_size=25)
MEMBERS = st.dictionaries(
    st.builds("{} {}.{}.{}".format, WORDS, WORDS, WORDS, WORDS) | WORDS,
    st.binary(max_size=1500),
    max_size=6,
)
FIRST, SECOND = "p_0001.image.png", "p_0001.mask.png"


def written(contents: dict[str, bytes]) -> bytes:
    writer = ShardWriter()
    for name, data in contents.items():
        writer.add(name, data)
    return writer.finish()


# Payloads of ones, so that no byte of theirs passes for padding.
SHARD = written({FIRST: b"\1" * 700, SECOND: b"\1" * 512})
SECOND_HEADER = 512 + 1024
END = SECOND_HEADER + 1024


def with_header(change: Callable[[tarfile.TarInfo], object], encoding: str = "latin-1") -> bytes:
    """The shard with another second header: well formed, its checksum right."""
    info = tarfile.TarInfo(SECOND)
    info.size = 512
    change(info)
    return with_block(info.tobuf(tarfile.USTAR_FORMAT, encoding, "strict"))


def with_block(header: bytes) -> bytes:
    return SHARD[:SECOND_HEADER] + header + SHARD[SECOND_HEADER + 512 :]


def with_field(start: int, value: bytes) -> bytes:
    """The shard with some bytes of the second header replaced, and its checksum made right."""
    header = bytearray(SHARD[SECOND_HEADER : SECOND_HEADER + 512])
    header[start : start + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return with_block(bytes(header))


@given(MEMBERS)
def test_what_the_writer_writes_is_read_as_the_standard_library_reads_it(contents: dict[str, bytes]) -> None:
    shard = written(contents)
    with tarfile.open(fileobj=io.BytesIO(shard), mode="r:") as tar:
        right = [(m.name, m.offset_data, m.size) for m in tar.getmembers()]
    assert members(shard) == right
    assert members(memoryview(shard)) == right
    check_contents(shard, "s.tar", right)


def test_the_longest_name_is_read() -> None:
    name = "x" * 95 + ".json"
    assert members(written({name: b""})) == [Member(name, 512, 0)]


def test_a_mapped_file_can_be_closed_after_good_and_bad(tmp_path: Path) -> None:
    for number, shard in enumerate((SHARD, SHARD[:-1])):
        path = tmp_path / str(number)
        path.write_bytes(shard)
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as mapped:
            if number:
                with pytest.raises(InputError):
                    members(mapped)
                with pytest.raises(InputError):
                    check_contents(mapped, "s.tar", [(SECOND, 0, 0)])
            else:
                assert members(mapped) == members(SHARD)


def test_any_bit_changed_outside_the_payloads_is_refused() -> None:
    payload = {*range(512, 512 + 700), *range(SECOND_HEADER + 512, END)}
    changed = 0
    for at in (at for at in range(len(SHARD)) if at not in payload):
        for bit in range(8):
            spoilt = bytearray(SHARD)
            spoilt[at] ^= 1 << bit
            with pytest.raises(InputError, match=r"byte \d+.*copy the shard again, or pack the data again$"):
                members(spoilt)
            changed += 1
    assert changed == 8 * (2 * 512 + 324 + 1024)


def test_any_bit_that_tells_neither_name_nor_size_is_refused_though_the_checksum_fits() -> None:
    for at in (*range(100, 124), *range(135, 148), *range(156, 512)):
        for bit in range(8):
            value = SHARD[SECOND_HEADER + at] ^ 1 << bit
            with pytest.raises(InputError, match=f"^{SECOND} at byte {SECOND_HEADER} "):
                members(with_field(at, bytes([value])))


@pytest.mark.parametrize("shard", [SHARD, written({}), written({FIRST: b""})])
def test_a_shard_cut_or_grown_anywhere_is_refused(shard: bytes) -> None:
    for size in range(len(shard)):
        with pytest.raises(InputError, match=r"byte \d+"):
            members(shard[:size])
    for surplus in (b"\0", bytes(512), bytes(10240), b"x", SHARD):
        with pytest.raises(InputError, match=r"nor is it 1024 zeros"):
            members(shard + surplus)


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../p_0001.mask.png",
        "p/../q.png",
        "p/q.png",
        "..",
        ".hidden",
        "p..png",
        "p.png.",
        "p\\q.png",
        "C:x.png",
        "pipe:curl example.org",
        "s3://bucket/p.png",
        "p\nq.png",
        "p\x7f.png",
        "p\x1b[31m.png",
        " p.png",
        "pä.png",
    ],
)
def test_an_unsafe_name_is_refused_and_shown_harmless(name: str) -> None:
    shard = with_header(lambda info: setattr(info, "name", name))
    with pytest.raises(InputError, match=f" at byte {SECOND_HEADER} is an unsafe name") as caught:
        members(shard)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("shard", "said"),
    [
        (with_field(2, b"\0"), "is an unsafe name"),
        (with_field(0, b"\0"), "neither a member begins there"),
        (with_field(345, b"shards"), "lies in a folder, shards"),
        (with_field(345, b"/etc"), "lies in a folder, '/etc'"),
        (with_field(257, b"ustar  \0"), "has no ustar header"),
        (with_field(257, b"\0" * 8), "has no ustar header"),
        (with_block(b"x" * 512), "has no ustar header"),
        (
            with_header(lambda info: setattr(info, "mode", 0o4755)),
            "has more in its header than a name and a size",
        ),
        (with_header(lambda info: setattr(info, "mtime", 1)), "has more in its header"),
        (with_header(lambda info: setattr(info, "uid", 1)), "has more in its header"),
        (with_header(lambda info: setattr(info, "uname", "root")), "has more in its header"),
        (with_header(lambda info: setattr(info, "linkname", "/etc/passwd")), "has more in its header"),
        (with_field(124, b"-0000000001"), "has more in its header"),
        (with_field(124, b"      1000\0"), "has more in its header"),
        (with_field(124, b"\x80" + bytes(10) + b"\x02"), "has more in its header"),
        (with_field(124, b"00000000009"), "has more in its header"),
        (with_field(124, b"77777777777"), "has 8589934591 bytes by its header, 1536 are left"),
        (with_field(124, b"00000003001"), "has 1537 bytes by its header, 1536 are left"),
        (with_field(0, FIRST.encode().ljust(100, b"\0")), "comes twice"),
    ],
)
def test_a_member_of_another_kind_is_refused_with_its_place(shard: bytes, said: str) -> None:
    with pytest.raises(InputError, match=rf"byte {SECOND_HEADER}:? .*{said}"):
        members(shard)


@pytest.mark.parametrize("kind", ["1", "2", "3", "4", "5", "6", "7", "x", "g", "L", "K", "S", "\0"])
def test_a_link_a_folder_a_device_or_an_extension_is_refused_by_its_type(kind: str) -> None:
    shown = kind if kind.isalnum() else repr(kind)
    with pytest.raises(
        InputError, match=re.escape(f"{SECOND} at byte {SECOND_HEADER} is of type {shown}, not a")
    ):
        members(with_field(156, kind.encode()))


def test_padding_that_is_no_padding_is_refused() -> None:
    shard = bytearray(SHARD)
    shard[SECOND_HEADER - 1] = 7
    with pytest.raises(InputError, match=f"^{FIRST} at byte 0 is not filled up with zeros"):
        members(shard)


EXPECTED = [(m.name, m.offset, m.size) for m in members(SHARD)]
NAME, OFFSET, SIZE = EXPECTED[1]


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        (
            [EXPECTED[0], (NAME, OFFSET + 512, SIZE)],
            f"{NAME}: the index says 512 bytes at 2560, the shard has in its",
        ),
        (
            [EXPECTED[0], (NAME, OFFSET, SIZE - 1)],
            f"{NAME}: the index says 511 bytes at 2048, .* 512 bytes at 2048;",
        ),
        (
            [EXPECTED[0], ("p_0002.mask.png", OFFSET, SIZE)],
            f"p_0002.mask.png: .* in its place {NAME}, 512 bytes",
        ),
        (EXPECTED[::-1], f"{NAME}: .* in its place {FIRST}, 700 bytes"),
        (EXPECTED[:1], f"{NAME}: is in the shard, but not in the index;"),
        (EXPECTED[1:], f"{NAME}: .* in its place {FIRST}"),
        ([*EXPECTED, ("p_0001.json", 0, 1)], r"p_0001\.json: is not in the shard, which ends before it;"),
    ],
)
def test_contents_that_the_index_does_not_know_name_shard_and_member(
    expected: list[tuple[str, int, int]], said: str
) -> None:
    with pytest.raises(InputError, match=f"^shards/val-000000.tar: {said}.* again$"):
        check_contents(SHARD, "shards/val-000000.tar", expected)


@pytest.mark.parametrize(
    ("shard", "said"),
    [
        (with_block(b"x" * 512), f"{NAME}: x+ at byte {SECOND_HEADER} has no ustar header"),
        (
            with_header(lambda info: setattr(info, "name", "../x")),
            rf"{NAME}: '\.\./x' at byte {SECOND_HEADER} is an",
        ),
        (SHARD[:SECOND_HEADER], f"{NAME}: byte {SECOND_HEADER}: neither"),
        (
            SHARD[: SECOND_HEADER + 9],
            f"{NAME}: byte {SECOND_HEADER}: the shard ends in the middle of a header",
        ),
        (SHARD + b"\0", f"after its last member: byte {END}: neither"),
    ],
)
def test_a_damaged_shard_names_itself_and_the_member_due(shard: bytes, said: str) -> None:
    with pytest.raises(InputError, match=f"^s.tar: {said}"):
        check_contents(shard, "s.tar", EXPECTED)


def test_messages_quote_no_control_characters() -> None:
    shard = with_field(0, b"\x1b]0;\x07".ljust(100, b"\0"))
    with pytest.raises(InputError) as caught:
        check_contents(shard, "s.tar", EXPECTED)
    assert re.search(r"'\\x1b\]0;\\x07'", str(caught.value))
