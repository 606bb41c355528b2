import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.writer import ShardWriter

MEMBERS = st.dictionaries(
    st.text("abcXYZ019_", min_size=1, max_size=60).map("{}.json".format),
    st.binary(max_size=1500),
    max_size=6,
)


def written(members: dict[str, bytes]) -> bytes:
    writer = ShardWriter()
    for name, data in members.items():
        writer.add(name, data)
    return writer.finish()


@given(MEMBERS)
def test_offsets_point_at_the_payloads(members: dict[str, bytes]) -> None:
    writer = ShardWriter()
    places = {name: writer.add(name, data) for name, data in members.items()}
    shard = writer.finish()
    for name, data in members.items():
        assert shard[places[name].offset : places[name].offset + places[name].size] == data


@given(MEMBERS)
def test_the_standard_tar_reader_sees_the_members_in_order_without_owner_or_time(
    members: dict[str, bytes],
) -> None:
    with tarfile.open(fileobj=io.BytesIO(written(members)), mode="r:") as tar:
        found = tar.getmembers()
        assert [m.name for m in found] == list(members)
        for member in found:
            file = tar.extractfile(member)
            assert file is not None
            assert file.read() == members[member.name]
            assert member.isreg()
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")


@given(MEMBERS)
def test_the_same_members_give_the_same_bytes_in_whole_blocks(members: dict[str, bytes]) -> None:
    shard = written(members)
    assert shard == written(members)
    assert len(shard) % 512 == 0
    assert shard.endswith(bytes(1024))


def test_a_shard_is_the_same_on_every_platform() -> None:
    """The header of a ustar member by the letter of POSIX.1-1988."""
    shard = written({"a.json": b"{}"})
    header = b"a.json".ljust(100, b"\0")
    header += b"0000644\0" + b"0000000\0" * 2 + b"00000000002\0" + b"00000000000\0"
    rest = b"0" + bytes(100) + b"ustar\x0000" + bytes(247)
    total = sum(header) + sum(rest) + 8 * ord(" ")
    assert shard == header + b"%06o\0 " % total + rest + b"{}".ljust(512, b"\0") + bytes(1024)


@pytest.mark.parametrize("name", ["x" * 101, "ä.json"])
def test_a_name_that_ustar_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"name is too long|'ascii' codec"):
        ShardWriter().add(name, b"")
