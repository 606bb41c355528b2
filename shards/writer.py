"""Byte-reproducible tar shards, and where each member lies in them."""

import io
import tarfile
from dataclasses import dataclass


@dataclass(frozen=True)
class Member:
    """Where a member's payload lies in its shard, in bytes."""

    offset: int
    size: int


class ShardWriter:
    """Builds one shard in memory: POSIX ustar, no owner, no time, members in the order added.

    ``tarfile`` would pad to 10 KiB records; only the end-of-archive blocks the format asks for are written.
    """

    def __init__(self) -> None:
        self._out = io.BytesIO()

    def add(self, name: str, data: bytes) -> Member:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self._out.write(info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict"))
        member = Member(self._out.tell(), len(data))
        self._out.write(data)
        self._out.write(bytes(-len(data) % tarfile.BLOCKSIZE))
        return member

    def finish(self) -> bytes:
        self._out.write(bytes(2 * tarfile.BLOCKSIZE))
        return self._out.getvalue()
