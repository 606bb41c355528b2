import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from shards.png import MAX_PIXELS, OtherFormError, decode_bits, decode_rgb, encode_bits, encode_rgb

SIZES = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=20)
IMAGES = SIZES.flatmap(lambda size: arrays(np.uint8, (*size, 3)))
MASKS = SIZES.flatmap(lambda size: arrays(np.uint8, size, elements=st.integers(0, 1)))

IMAGE = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
MASK = (IMAGE[..., 0] > 128).astype(np.uint8)
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(rows: bytes, *, header: tuple[int, ...] = (7, 9, 8, 2, 0, 0, 0), parts: int = 1) -> bytes:
    """A PNG of filtered rows; by default its header is that of ``IMAGE``."""
    deflated = zlib.compress(rows)
    cuts = [len(deflated) * part // parts for part in range(parts + 1)]
    bodies = (deflated[a:b] for a, b in itertools.pairwise(cuts))
    data = b"".join(chunk(b"IDAT", body) for body in bodies)
    return SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", *header)) + data + chunk(b"IEND", b"")


def up_filtered(image: np.ndarray) -> bytes:
    """The rows of an image by the letter of the specification, byte by byte."""
    above = bytes(image[0].size)
    rows = b""
    for line in image:
        here = line.tobytes()
        rows += b"\2" + bytes((a - b) % 256 for a, b in zip(here, above, strict=True))
        above = here
    return rows


ROWS = up_filtered(IMAGE)


@given(IMAGES)
def test_pillow_reads_what_is_written(image: np.ndarray) -> None:
    picture = Image.open(io.BytesIO(encode_rgb(image)), formats=["PNG"])
    assert picture.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(picture), image)


@given(MASKS)
def test_pillow_reads_a_mask_of_one_bit(mask: np.ndarray) -> None:
    picture = Image.open(io.BytesIO(encode_bits(mask)), formats=["PNG"])
    assert picture.mode == "1"
    np.testing.assert_array_equal(np.asarray(picture), mask)


@given(IMAGES)
def test_an_image_comes_back_new_or_in_the_caller_s_array(image: np.ndarray) -> None:
    rows = np.full((3, *image.shape), 77, np.uint8)
    assert np.shares_memory(decode_rgb(encode_rgb(image), rows[1]), rows)
    np.testing.assert_array_equal(rows[1], image)
    assert (rows[::2] == 77).all()
    np.testing.assert_array_equal(decode_rgb(memoryview(encode_rgb(image))), image)


@given(MASKS)
def test_a_mask_comes_back_new_or_in_the_caller_s_array(mask: np.ndarray) -> None:
    rows = np.full((3, *mask.shape), 77, np.uint8)
    decode_bits(encode_bits(mask), rows[1])
    np.testing.assert_array_equal(rows[1], mask)
    assert (rows[::2] == 77).all()
    np.testing.assert_array_equal(decode_bits(memoryview(encode_bits(mask))), mask)


@pytest.mark.parametrize("height", [1, 2, 3, 4, 5, 8, 9, 31, 32, 33, 255, 256, 257])
def test_rows_are_summed_at_any_height(height: int) -> None:
    image = np.random.default_rng(height).integers(0, 256, (height, 2, 3), np.uint8)
    np.testing.assert_array_equal(decode_rgb(encode_rgb(image)), image)


def test_rows_are_filtered_as_the_specification_says() -> None:
    inflated = zlib.decompress(encode_rgb(IMAGE).partition(b"IDAT")[2].partition(b"IEND")[0][:-8])
    assert inflated == ROWS


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_data_in_several_chunks_are_one_stream(parts: int) -> None:
    np.testing.assert_array_equal(decode_rgb(png(ROWS, parts=parts)), IMAGE)


@given(st.data())
def test_no_change_of_bytes_goes_unnoticed(data: st.DataObject) -> None:
    decode, whole = data.draw(
        st.sampled_from([(decode_rgb, encode_rgb(IMAGE)), (decode_bits, encode_bits(MASK))])
    )
    spoilt = bytearray(whole)
    place = st.tuples(st.integers(0, len(spoilt) - 1), st.integers(1, 255))
    for at, change in dict(data.draw(st.lists(place, min_size=1, max_size=6))).items():
        spoilt[at] ^= change
    with pytest.raises(ValueError, match=r"^(it|its data|the checksum) "):
        decode(bytes(spoilt))


@given(st.data())
def test_a_cut_or_longer_file_is_refused(data: st.DataObject) -> None:
    whole = encode_rgb(IMAGE)
    for spoilt in (
        whole[: data.draw(st.integers(0, len(whole) - 1))],
        whole + data.draw(st.binary(min_size=1)),
    ):
        with pytest.raises(ValueError, match=r"^it (has no|ends|goes on)"):
            decode_rgb(spoilt)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_forged_header_never_gives_other_than_its_own_shape(changes: list[tuple[int, int]]) -> None:
    fields = bytearray(struct.pack(">IIBBBBB", 7, 9, 8, 2, 0, 0, 0))
    for at, value in changes:
        fields[at] = value
    whole = encode_rgb(IMAGE)
    forged = SIGNATURE + chunk(b"IHDR", bytes(fields)) + whole[33:]
    width, height, *_ = struct.unpack(">IIBBBBB", fields)
    try:
        image = decode_rgb(forged)
    except (ValueError, OtherFormError):
        return
    assert image.shape == (height, width, 3)
    assert image.size == IMAGE.size


def test_a_forged_stream_is_refused_by_its_own_checksum() -> None:
    deflated = bytearray(zlib.compress(ROWS))
    deflated[-1] ^= 1
    whole = png(ROWS)
    forged = whole[:33] + chunk(b"IDAT", bytes(deflated)) + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match="do not inflate"):
        decode_rgb(forged)


@pytest.mark.parametrize(
    "rows",
    [ROWS[:-1], ROWS + b"x", b"", bytes(50_000_000)],
    ids=["short", "long", "empty", "bomb"],
)
def test_data_of_another_size_than_the_header_says_are_refused(rows: bytes) -> None:
    with pytest.raises(ValueError, match="another size than its header says"):
        decode_rgb(png(rows))


def test_a_bomb_is_never_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Inflater:
        eof, unused_data = False, b""

        def decompress(self, _: bytes, size: int) -> bytes:
            asked.append(size)
            return bytes(size)

    monkeypatch.setattr("shards.png.isal_zlib.decompressobj", Inflater)
    with pytest.raises(ValueError, match="another size"):
        decode_rgb(png(bytes(1_000_000)))
    assert asked == [len(ROWS) + 1]


@pytest.mark.parametrize(("width", "height"), [(0, 9), (7, 0), (1, MAX_PIXELS + 1), (2**32 - 1, 2**32 - 1)])
def test_a_header_of_no_or_too_many_pixels_is_refused(width: int, height: int) -> None:
    with pytest.raises(ValueError, match=rf"{height}×{width} pixels"):
        decode_rgb(png(ROWS, header=(width, height, 8, 2, 0, 0, 0)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        SIGNATURE,
        SIGNATURE + chunk(b"IEND", b""),
        SIGNATURE + chunk(b"IHDR", b"short") + chunk(b"IEND", b""),
        SIGNATURE + chunk(b"IDAT", zlib.compress(ROWS)) + chunk(b"IEND", b""),
        png(ROWS).replace(chunk(b"IEND", b""), b""),
    ],
)
def test_a_file_without_its_parts_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^it "):
        decode_rgb(data)


def test_an_image_that_does_not_fit_is_refused_and_not_written() -> None:
    out = np.full((7, 9, 3), 77, np.uint8)
    with pytest.raises(ValueError, match=r"it is \(9, 7, 3\), expected is \(7, 9, 3\)"):
        decode_rgb(encode_rgb(IMAGE), out)
    with pytest.raises(ValueError, match=r"it is \(9, 7\), expected is \(7, 9\)"):
        decode_bits(encode_bits(MASK), out[..., 0])
    assert (out == 77).all()


def test_an_array_that_is_not_contiguous_is_no_place_for_an_image() -> None:
    with pytest.raises(ValueError, match="copy"):
        decode_rgb(encode_rgb(IMAGE), np.empty((9, 14, 3), np.uint8)[:, ::2])


@pytest.mark.parametrize(
    "data",
    [
        png(b"\0" + ROWS[1:]),  # one row is not filtered
        png(ROWS, header=(7, 9, 8, 2, 0, 0, 1)),  # interlaced
        png(ROWS, header=(7, 9, 8, 6, 0, 0, 0)),  # with transparency
        png(ROWS, header=(7, 9, 16, 2, 0, 0, 0)),
        encode_bits(MASK),
        SIGNATURE
        + chunk(b"IHDR", encode_rgb(IMAGE)[16:29])
        + chunk(b"tEXt", b"a\0b")
        + encode_rgb(IMAGE)[33:],
    ],
)
def test_another_form_is_told_from_damage(data: bytes) -> None:
    with pytest.raises(OtherFormError):
        decode_rgb(data)


def test_a_mask_of_another_form_is_told_from_damage() -> None:
    for data in (encode_rgb(IMAGE), png(b"\2\0" * 9, header=(7, 9, 1, 0, 0, 0, 0))):
        with pytest.raises(OtherFormError):
            decode_bits(data)
