"""PNG (ISO/IEC 15948) as shards hold it: 8-bit RGB and one-bit grey, fast to write and to read, checked in full.

Two forms only.  RGB has the Up filter on every row, which numpy undoes for all rows at once.  Rows of one-bit
grey are not filtered.  Any reader of PNG reads them; a PNG of another form raises ``OtherFormError``.  Inflating is
ISA-L's and releases the interpreter's lock, so that threads decode side by side.  Deflating is plain zlib's,
whose bytes do not depend on the processor as those of faster libraries do.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Buffer = bytes | memoryview

MAX_PIXELS = 1 << 26
"""A larger picture is refused before it is inflated."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">IIBBBBB")  # width, height, bit depth, colour type, compression, filter, interlace
_CHUNK = struct.Struct(">I4s")  # length, kind; the body and its checksum follow
_CHECKSUM = struct.Struct(">I")
_GREY, _RGB = 0, 2
_FILTER_NONE, _FILTER_UP = 0, 2


class OtherFormError(Exception):
    """A PNG whose chunks are sound, but of another form than is written here."""


def encode_rgb(image_HWC: Pixels) -> bytes:
    """Encode a uint8 (H, W, 3) image."""
    height, width, _ = image_HWC.shape
    rows = image_HWC.reshape(height, -1)
    lines = np.empty((height, 1 + 3 * width), np.uint8)
    lines[:, 0] = _FILTER_UP
    lines[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=lines[1:, 1:])
    # Differences of neighbouring rows repeat where the air is, hardly elsewhere: looking for runs alone is faster
    # than level 3's search for matches, and smaller (benchmarks/encoding.py).
    deflater = zlib.compressobj(level=1, strategy=zlib.Z_RLE)
    header = _HEADER.pack(width, height, 8, _RGB, 0, 0, 0)
    return _file(header, deflater.compress(lines.data) + deflater.flush())


def encode_bits(mask_HW: Pixels) -> bytes:
    """Encode a uint8 (H, W) mask of {0, 1} as one-bit grey: readers see 0 and the largest value."""
    height, width = mask_HW.shape
    packed = np.packbits(mask_HW, axis=1)
    lines = np.insert(packed, 0, _FILTER_NONE, axis=1)
    return _file(_HEADER.pack(width, height, 1, _GREY, 0, 0, 0), zlib.compress(lines.data))


def decode_rgb(data: Buffer, out: Pixels | None = None) -> Pixels:
    """Decode to uint8 (H, W, 3), into the contiguous ``out`` when it is given.

    Raises:
        ValueError: the bytes are damaged, or the image has another shape than ``out``.
        OtherFormError: it is another form of PNG.
    """
    header, lines = _read(data, bit_depth=8, colour=_RGB, filtered=_FILTER_UP)
    out = _target(out, (header.height, header.width, 3))
    _undo_up(lines, out.reshape(header.height, -1, copy=False))
    return out


def decode_bits(data: Buffer, out: Pixels | None = None) -> Pixels:
    """Decode to uint8 (H, W) of {0, 1}; otherwise as ``decode_rgb``."""
    header, lines = _read(data, bit_depth=1, colour=_GREY, filtered=_FILTER_NONE)
    mask_HW = np.unpackbits(lines, axis=1, count=header.width)
    if out is None:
        return mask_HW
    out = _target(out, mask_HW.shape)
    out[...] = mask_HW
    return out


def _file(header: bytes, deflated: bytes) -> bytes:
    chunks = [_SIGNATURE]
    for kind, body in ((b"IHDR", header), (b"IDAT", deflated), (b"IEND", b"")):
        checksum = zlib.crc32(body, zlib.crc32(kind))
        chunks += [_CHUNK.pack(len(body), kind), body, _CHECKSUM.pack(checksum)]
    return b"".join(chunks)


@dataclass(frozen=True)
class _Header:
    width: int
    height: int
    bit_depth: int
    colour: int
    compression: int
    filtering: int
    interlace: int


def _read(data: Buffer, bit_depth: int, colour: int, filtered: int) -> tuple[_Header, Pixels]:
    """The header, and the rows (H, bytes of a row) without their filter bytes, which are all ``filtered``."""
    # All checksums first: a damaged file is refused here, whatever its form.
    chunks = list(_chunks(memoryview(data)))
    kinds = [kind for kind, _ in chunks]
    if kinds[0] != b"IHDR" or len(chunks[0][1]) != _HEADER.size:
        raise ValueError("it begins with no header")
    header = _Header(*_HEADER.unpack(chunks[0][1]))
    form = (header.bit_depth, header.colour, header.compression, header.filtering, header.interlace)
    if form != (bit_depth, colour, 0, 0, 0) or set(kinds[1:-1]) != {b"IDAT"}:
        raise OtherFormError
    if not 0 < header.width * header.height <= MAX_PIXELS:
        raise ValueError(f"it says it is {header.height}×{header.width} pixels")
    bits = header.width * bit_depth * (3 if colour == _RGB else 1)
    stride = 1 + (bits + 7) // 8
    bodies = [body for _, body in chunks[1:-1]]
    inflated = _inflate(bodies[0] if len(bodies) == 1 else b"".join(bodies), header.height * stride)
    lines = np.frombuffer(inflated, np.uint8).reshape(header.height, stride)
    if (lines[:, 0] != filtered).any():
        raise OtherFormError
    return header, lines[:, 1:]


def _chunks(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and body of each chunk, up to the end chunk.  Raises ``ValueError`` for what is damaged."""
    if data[: len(_SIGNATURE)] != _SIGNATURE:
        raise ValueError("it has no PNG signature")
    at, kind = len(_SIGNATURE), b""
    while kind != b"IEND":
        if len(data) - at < _CHUNK.size:
            raise ValueError("it ends early")
        size, kind = _CHUNK.unpack_from(data, at)
        body = at + _CHUNK.size
        end = body + size
        if len(data) - end < _CHECKSUM.size:
            raise ValueError("it ends early")
        if isal_zlib.crc32(data[at + 4 : end]) != _CHECKSUM.unpack_from(data, end)[0]:
            raise ValueError(f"the checksum of its {kind.decode('ascii', 'replace')} chunk does not match")
        yield kind, data[body:end]
        at = end + _CHECKSUM.size
    if at != len(data):
        raise ValueError("it goes on after its end")


def _inflate(deflated: Buffer, size: int) -> bytes:
    """Exactly ``size`` bytes; a stream that would give more is stopped there."""
    inflater = isal_zlib.decompressobj()
    try:
        inflated = inflater.decompress(deflated, size + 1)
    except isal_zlib.IsalError as error:  # type: ignore[misc]  # its stub has an instance for the class
        raise ValueError(f"its data do not inflate: {error}") from error
    if len(inflated) != size or not inflater.eof or inflater.unused_data:
        raise ValueError("its data have another size than its header says")
    return inflated


def _target(out: Pixels | None, shape: tuple[int, ...]) -> Pixels:
    if out is None:
        return np.empty(shape, np.uint8)
    if out.shape != shape:
        raise ValueError(f"it is {shape}, expected is {out.shape}")
    return out


def _undo_up(lines: Pixels, rows: Pixels) -> None:
    """Write to ``rows`` the sums of each line with all above it, modulo 256; both (H, bytes of a row).

    Log2(H) additions of whole arrays (Hillis and Steele 1986) take a third of the time of one a row.
    """
    steps = (len(lines) - 1).bit_length()
    if steps == 0:
        rows[...] = lines
        return
    spare = np.empty_like(rows)
    source = lines
    for step in range(steps):
        target = rows if (steps - step) % 2 else spare  # The last one is `rows`.
        shift = 1 << step
        target[:shift] = source[:shift]
        np.add(source[shift:], source[:-shift], out=target[shift:])
        source = target
