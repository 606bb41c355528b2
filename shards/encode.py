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

Encoding = Literal["png", "webp", "raw"]
Pixels = NDArray[np.uint8]

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
    out = io.BytesIO()
    match encoding:
        case "png":
            Image.fromarray(image_HWC).save(out, "PNG", compress_level=6)
        case "webp":
            Image.fromarray(image_HWC).save(out, "WEBP", lossless=True, quality=40, method=3)
        case "raw":
            np.lib.format.write_array(
                out, np.ascontiguousarray(image_HWC), version=(1, 0), allow_pickle=False
            )
    return out.getvalue()


def decode_image(data: bytes, name: str) -> Pixels:
    """Decode an image member to uint8 (H, W, 3).

    Raises:
        InputError: the bytes are not the image the member's name promises.
    """
    try:
        if name.endswith(".npy"):
            image = _read_npy(data)
        else:
            image = np.asarray(Image.open(io.BytesIO(data), formats=[name.rpartition(".")[2].upper()]))
    except _DAMAGE as error:
        raise InputError(f"{name}: damaged image ({error}); fetch or pack the shard again") from error
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"{name}: expected uint8 (H, W, 3), found {image.dtype} {image.shape}")
    return image


def _read_npy(data: bytes) -> Pixels:
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
    out = io.BytesIO()
    Image.fromarray(mask_HW * np.uint8(255)).convert("1", dither=Image.Dither.NONE).save(out, "PNG")
    return out.getvalue()


def decode_mask(data: bytes, name: str) -> Pixels:
    """Decode a mask member to uint8 (H, W) of {0, 1}.

    Raises:
        InputError: the bytes are not a one-bit PNG.
    """
    try:
        picture = Image.open(io.BytesIO(data), formats=["PNG"])
        mask_HW = np.asarray(picture)
    except _DAMAGE as error:
        raise InputError(f"{name}: damaged mask ({error}); fetch or pack the shard again") from error
    if picture.mode != "1":
        raise InputError(f"{name}: expected a one-bit mask, found mode {picture.mode}")
    return mask_HW.astype(np.uint8)


def encode_meta(meta: dict[str, Any]) -> bytes:
    return json.dumps(meta, sort_keys=True, separators=(",", ":")).encode()
