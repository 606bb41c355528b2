"""Arrays to the bytes of a shard's members and back, without loss and without pickle."""

import io
import json
import math
import struct
import tokenize
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.errors import InputError
from shards.png import OtherFormError, decode_bits, decode_rgb, encode_bits, encode_rgb

Encoding = Literal["png", "webp", "raw"]
Pixels = NDArray[np.uint8]
Buffer = bytes | memoryview

# `raw` is an .npy array: stock readers know the extension, and its header carries shape and dtype.
IMAGE_SUFFIX: dict[str, str] = {"png": "image.png", "webp": "image.webp", "raw": "image.npy"}
MASK_SUFFIX = "mask.png"
META_SUFFIX = "json"

# What Pillow and numpy raise for files with random bytes changed.
_DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    OverflowError,
    SyntaxError,
    EOFError,
    struct.error,
    tokenize.TokenError,
    Image.DecompressionBombError,
)


def encode_image(image_HWC: Pixels, encoding: Encoding) -> bytes:
    """Encode a uint8 (H, W, 3) slice; the same bytes for the same pixels and library versions."""
    match encoding:
        case "png":
            return encode_rgb(image_HWC)
        case "webp":
            out = io.BytesIO()
            Image.fromarray(image_HWC).save(out, "WEBP", lossless=True, quality=40, method=3)
            return out.getvalue()
        case "raw":
            out = io.BytesIO()
            np.lib.format.write_array(
                out, np.ascontiguousarray(image_HWC), version=(1, 0), allow_pickle=False
            )
            return out.getvalue()


def decode_image(data: Buffer, name: str, out: Pixels | None = None) -> Pixels:
    """Decode an image member to uint8 (H, W, 3).

    ``out``, contiguous and of the image's shape, is filled and returned; a PNG of ours is decoded right into it.

    Raises:
        InputError: the bytes are not the image the member's name promises, or it does not fit ``out``.
    """
    try:
        image = _read_image(data, name.rpartition(".")[2], out)
    except _DAMAGE as error:
        raise InputError(f"{name}: damaged image ({error}); fetch or pack the shard again") from error
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(
            f"{name}: expected uint8 (H, W, 3), found {image.dtype} {image.shape}; pack the data again"
        )
    return _filled(image, out, name)


def _read_image(data: Buffer, extension: str, out: Pixels | None) -> Pixels:
    match extension:
        case "npy":
            return _read_npy(data)
        case "png":
            try:
                return decode_rgb(data, out)
            except OtherFormError:
                if data[24:26] == b"\x10\x02":  # Bit depth and colour type; Pillow would drop half the bits.
                    raise ValueError("it has 16 bits a channel") from None
    return np.asarray(Image.open(io.BytesIO(data), formats=[extension.upper()]))


def _read_npy(data: Buffer) -> Pixels:
    """The array of an .npy file whose payload is plain bytes; nothing in it is ever unpickled."""
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not version 1.0 of .npy")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    payload = len(data) - file.tell()
    if dtype != np.uint8 or fortran_order or math.prod(shape) != payload:
        raise ValueError(f"{dtype} {shape} in {payload} bytes is no uint8 image")
    return np.frombuffer(data, np.uint8, offset=file.tell()).reshape(shape)


def encode_mask(mask_HW: Pixels) -> bytes:
    """Encode a {0, 1} mask as a one-bit PNG, which readers see as 0 and 255."""
    return encode_bits(mask_HW)


def decode_mask(data: Buffer, name: str, out: Pixels | None = None) -> Pixels:
    """Decode a mask member to uint8 (H, W) of {0, 1}; ``out`` as of ``decode_image``.

    Raises:
        InputError: the bytes are not a one-bit PNG, or it does not fit ``out``.
    """
    try:
        mask_HW, mode = _read_mask(data, out)
    except _DAMAGE as error:
        raise InputError(f"{name}: damaged mask ({error}); fetch or pack the shard again") from error
    if mode != "1":
        raise InputError(f"{name}: expected a one-bit mask, found mode {mode}; pack the data again")
    return _filled(mask_HW, out, name)


def _read_mask(data: Buffer, out: Pixels | None) -> tuple[Pixels, str]:
    """The picture and its mode by Pillow's names: ``1`` is one bit a pixel."""
    try:
        return decode_bits(data, out), "1"
    except OtherFormError:
        picture = Image.open(io.BytesIO(data), formats=["PNG"])
        return np.asarray(picture).astype(np.uint8), picture.mode


def _filled(pixels: Pixels, out: Pixels | None, name: str) -> Pixels:
    if out is None or pixels is out:
        return pixels
    if pixels.shape != out.shape:
        raise InputError(f"{name}: expected {out.shape} pixels, found {pixels.shape}; pack the data again")
    out[...] = pixels
    return out


def encode_meta(meta: dict[str, Any]) -> bytes:
    return json.dumps(meta, sort_keys=True, separators=(",", ":")).encode()
