import io
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from shards.encode import (
    IMAGE_SUFFIX,
    Encoding,
    decode_image,
    decode_mask,
    encode_image,
    encode_mask,
    encode_meta,
)
from shards.errors import InputError

ENCODINGS: tuple[Encoding, ...] = ("png", "webp", "raw")
SIZES = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24)
IMAGES = SIZES.flatmap(lambda size: arrays(np.uint8, (*size, 3)))
MASKS = SIZES.flatmap(lambda size: arrays(np.uint8, size, elements=st.integers(0, 1)))

IMAGE = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
MASK = (IMAGE[..., 0] > 128).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def npy(array: np.ndarray, **options: bool) -> bytes:
    out = io.BytesIO()
    np.save(out, array, **options)
    return out.getvalue()


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(image=IMAGES)
def test_images_come_back_bit_for_bit(encoding: Encoding, image: np.ndarray) -> None:
    data = encode_image(image, encoding)
    decoded = decode_image(data, f"p_0001.{IMAGE_SUFFIX[encoding]}")
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, image)
    assert encode_image(image, encoding) == data


@given(image=IMAGES, compress_level=st.integers(0, 9), compress_type=st.integers(0, 4))
def test_pillow_s_png_comes_back_bit_for_bit(
    image: np.ndarray, compress_level: int, compress_type: int
) -> None:
    """Shards of the first version hold them, with any filters."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", compress_level=compress_level, compress_type=compress_type)
    np.testing.assert_array_equal(decode_image(out.getvalue(), "i.image.png"), image)
    into = np.zeros_like(image)
    assert decode_image(out.getvalue(), "i.image.png", into) is into
    np.testing.assert_array_equal(into, image)


@given(MASKS)
def test_pillow_s_masks_come_back_bit_for_bit(mask: np.ndarray) -> None:
    picture = Image.fromarray(mask * np.uint8(255)).convert("1", dither=Image.Dither.NONE)
    for mode, options in (("1", {}), ("1", {"dpi": (72, 72)})):
        out = io.BytesIO()
        picture.convert(mode).save(out, "PNG", **options)
        np.testing.assert_array_equal(decode_mask(out.getvalue(), "m.mask.png"), mask)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_image_is_decoded_into_the_caller_s_array(encoding: Encoding) -> None:
    batch = np.zeros((2, *IMAGE.shape), np.uint8)
    data, name = encode_image(IMAGE, encoding), f"i.{IMAGE_SUFFIX[encoding]}"
    decoded = decode_image(memoryview(data), name, batch[1])
    assert np.shares_memory(decoded, batch)
    np.testing.assert_array_equal(batch[1], IMAGE)
    assert not batch[0].any()
    with pytest.raises(InputError, match=rf"^{name}: .*expected.* \(7, 9, 3\)"):
        decode_image(data, name, np.zeros((7, 9, 3), np.uint8))


def test_a_mask_is_decoded_into_the_caller_s_array() -> None:
    ours, others = encode_mask(MASK), png(MASK.astype(bool))
    for data in (ours, others):
        out = np.full_like(MASK, 7)
        assert decode_mask(memoryview(data), "m.mask.png", out) is out
        np.testing.assert_array_equal(out, MASK)
        with pytest.raises(InputError, match=r"^m\.mask\.png: .*expected.* \(7, 9\)"):
            decode_mask(data, "m.mask.png", np.zeros((7, 9), np.uint8))


@given(MASKS)
def test_masks_come_back_bit_for_bit(mask: np.ndarray) -> None:
    decoded = decode_mask(encode_mask(mask), "p_0001.mask.png")
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, mask)


def test_a_stock_reader_sees_a_mask_of_0_and_255() -> None:
    picture = Image.open(io.BytesIO(encode_mask(MASK)))
    np.testing.assert_array_equal(np.asarray(picture.convert("L")), MASK * 255)


def test_a_view_that_is_not_contiguous_encodes_as_its_pixels() -> None:
    for encoding in ENCODINGS:
        decoded = decode_image(encode_image(IMAGE[::2, ::-1], encoding), IMAGE_SUFFIX[encoding])
        np.testing.assert_array_equal(decoded, IMAGE[::2, ::-1])


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(data=st.data())
def test_half_an_image_is_refused_by_name(encoding: Encoding, data: st.DataObject) -> None:
    whole = encode_image(IMAGE, encoding)
    size = data.draw(st.integers(0, len(whole) - 1))
    name = f"p_0001.{IMAGE_SUFFIX[encoding]}"
    with pytest.raises(InputError, match=f"^{name}: damaged image .*again"):
        decode_image(whole[:size], name)


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(st.data())
def test_damaged_bytes_decode_to_an_image_or_are_refused(encoding: Encoding, data: st.DataObject) -> None:
    spoilt = bytearray(encode_image(IMAGE, encoding))
    place = st.tuples(st.integers(0, len(spoilt) - 1), st.integers(0, 255))
    for at, value in data.draw(st.lists(place, min_size=1, max_size=6)):
        spoilt[at] = value
    try:
        image = decode_image(bytes(spoilt), IMAGE_SUFFIX[encoding])
    except InputError:
        return
    assert (image.dtype, image.ndim, image.shape[2]) == (np.uint8, 3, 3)


@given(st.lists(st.tuples(st.integers(0, len(encode_mask(MASK)) - 1), st.integers(0, 255)), min_size=1))
def test_a_damaged_mask_decodes_to_a_mask_or_is_refused(changes: list[tuple[int, int]]) -> None:
    spoilt = bytearray(encode_mask(MASK))
    for at, value in changes:
        spoilt[at] = value
    try:
        mask = decode_mask(bytes(spoilt), "m.mask.png")
    except InputError as error:
        assert str(error).startswith("m.mask.png: ")  # noqa: PT017 - a refusal is one of two good outcomes
        return
    assert mask.ndim == 2
    assert set(np.unique(mask)) <= {0, 1}


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("i.image.png", png(IMAGE[..., 0]), r"expected uint8 \(H, W, 3\), found uint8 \(9, 7\)"),
        ("i.image.png", png(np.dstack([IMAGE, MASK])), r"found uint8 \(9, 7, 4\)"),
        ("i.image.png", png(IMAGE[..., 0].astype(np.uint16)), "found uint16"),
        ("i.image.png", encode_mask(MASK), "found bool"),
        ("i.image.png", encode_image(IMAGE, "webp"), "damaged"),
        ("i.image.webp", encode_image(IMAGE, "png"), "damaged"),
        ("i.image.npy", encode_image(IMAGE, "png"), "damaged"),
        ("i.image.npy", npy(IMAGE.astype(np.float32)), "float32"),
        ("i.image.npy", npy(IMAGE[..., 0]), r"found uint8 \(9, 7\)"),
        ("i.image.npy", npy(np.asfortranarray(IMAGE)), "no uint8 image"),
        ("i.image.npy", npy(IMAGE) + b"x", "190 bytes"),
    ],
)
def test_an_image_of_another_kind_is_refused_by_name(name: str, data: bytes, said: str) -> None:
    with pytest.raises(InputError, match=f"^{name}: .*{said}"):
        decode_image(data, name)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (png(MASK * np.uint8(255)), "expected a one-bit mask, found mode L"),
        (png(IMAGE), "expected a one-bit mask, found mode RGB"),
        (b"", "damaged mask"),
        (encode_mask(MASK)[:40], "damaged mask"),
    ],
)
def test_a_mask_of_another_kind_is_refused_by_name(data: bytes, said: str) -> None:
    with pytest.raises(InputError, match=rf"^m\.mask\.png: {said}"):
        decode_mask(data, "m.mask.png")


class Trap:
    """Unpickling it leaves a trace."""

    sprung = False

    def __reduce__(self) -> tuple[object, ...]:
        return setattr, (Trap, "sprung", True)


def test_a_pickle_is_refused_and_never_run() -> None:
    array = np.empty((1, 1, 3), object)
    array[...] = Trap()
    for name, data in (
        ("i.image.npy", npy(array, allow_pickle=True)),
        ("i.image.npy", pickle.dumps(Trap())),
        ("i.image.png", pickle.dumps(Trap())),
    ):
        with pytest.raises(InputError, match=f"^{name}: damaged image"):
            decode_image(data, name)
    assert not Trap.sprung
    pickle.loads(pickle.dumps(Trap()))  # noqa: S301 - the trap does work
    assert Trap.sprung


def test_meta_is_json_of_one_form() -> None:
    assert encode_meta({"b": [1.5], "a": "x"}) == b'{"a":"x","b":[1.5]}'
    assert encode_meta({"a": "x", "b": [1.5]}) == encode_meta({"b": [1.5], "a": "x"})
    assert json.loads(encode_meta({"institution": "é"})) == {"institution": "é"}
