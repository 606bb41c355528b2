"""Drawing for people: a slice in grey, outlines of its masks, many slices on one sheet."""

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Rgb = tuple[int, int, int]

# Yellow and blue stay apart for colour-blind readers of every kind, and both show on dark and bright tissue.
TRUTH: Rgb = (255, 214, 10)
PREDICTION: Rgb = (50, 165, 255)

FLAIR = 1
_DASH_PX = 7
_DIMMED = 0.85  # Brightest tissue under the outlines, so that yellow shows on a white tumour.
_BACKGROUND: Rgb = (16, 18, 22)
_CAPTION: Rgb = (200, 204, 212)
_CAPTION_PX = 13
_GAP_PX = 8


def to_rgb(image_HWC: Pixels) -> Pixels:
    """FLAIR (channel 1) of a slice as grey RGB, uint8 H×W×3: its 1st to 99.5th percentile fill 0..255.

    A slice whose two percentiles are equal comes out black.
    """
    flair_HW = image_HWC[..., FLAIR].astype(np.float32)
    low, high = np.percentile(flair_HW, (1.0, 99.5))
    stretched_HW = np.clip((flair_HW - low) / max(high - low, 1e-6), 0.0, 1.0)
    grey_HW = np.rint(stretched_HW * 255).astype(np.uint8)
    return np.repeat(grey_HW[..., None], 3, axis=2)


def outline(mask_HW: npt.NDArray[np.generic]) -> Mask:
    """One-pixel border on the inside of a mask, bool H×W.

    A pixel belongs to it when one of its four neighbours is outside the mask or outside the image.
    """
    inside_HW = np.pad(mask_HW.astype(bool), 1)
    interior_HW = inside_HW[:-2, 1:-1] & inside_HW[2:, 1:-1] & inside_HW[1:-1, :-2] & inside_HW[1:-1, 2:]
    border_HW: Mask = inside_HW[1:-1, 1:-1] & ~interior_HW
    return border_HW


def overlay(
    image_HWC: Pixels,
    truth_HW: npt.NDArray[np.generic] | None,
    prediction_HW: npt.NDArray[np.generic] | None,
    scale: int = 2,
) -> Image.Image:
    """FLAIR in grey, ``scale`` times enlarged, with the masks' outlines in ``TRUTH`` and ``PREDICTION``.

    Masks are any integer or bool type, non-zero inside.  Lines run inside the mask's edge, at most
    a pixel of the slice wide; where the two coincide, dashes of both alternate.
    """
    height, width = image_HWC.shape[:2]
    grey_HWC = (to_rgb(image_HWC) * _DIMMED).astype(np.uint8)
    grey = Image.fromarray(grey_HWC).resize((width * scale, height * scale), Image.Resampling.BICUBIC)
    canvas_HWC = np.array(grey)
    truth_line_HW = _enlarged_outline(truth_HW, (height, width), scale)
    prediction_line_HW = _enlarged_outline(prediction_HW, (height, width), scale)

    y, x = np.ogrid[: height * scale, : width * scale]
    truth_dash_HW = (x + y) // _DASH_PX % 2 == 0
    canvas_HWC[prediction_line_HW] = PREDICTION
    canvas_HWC[truth_line_HW & (truth_dash_HW | ~prediction_line_HW)] = TRUTH
    return Image.fromarray(canvas_HWC)


def contact_sheet(tiles: Sequence[tuple[Image.Image, str]], columns: int) -> Image.Image:
    """Pictures in rows of ``columns``, each with a caption under it, on a dark ground.

    Cells take the size of the largest picture; a caption too long for its cell is cut.

    Raises:
        ValueError: no tiles, or less than one column.
    """
    if not tiles or columns < 1:
        raise ValueError(f"a contact sheet needs a tile and a column, got {len(tiles)} and {columns}")
    columns = min(columns, len(tiles))
    width = max(picture.width for picture, _ in tiles)
    height = max(picture.height for picture, _ in tiles)
    caption_height = 2 * _CAPTION_PX
    step_x, step_y = width + _GAP_PX, height + caption_height + _GAP_PX
    rows = -(-len(tiles) // columns)

    sheet = Image.new("RGB", (columns * step_x + _GAP_PX, rows * step_y + _GAP_PX), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_CAPTION_PX)
    for index, (picture, caption) in enumerate(tiles):
        row, column = divmod(index, columns)
        x, y = _GAP_PX + column * step_x, _GAP_PX + row * step_y
        sheet.paste(picture, (x, y))
        text = _cut(caption, width, font)
        draw.text((x, y + height + caption_height // 2), text, fill=_CAPTION, font=font, anchor="lm")
    return sheet


def to_png(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return file.getvalue()


def _enlarged_outline(mask_HW: npt.NDArray[np.generic] | None, shape: tuple[int, int], scale: int) -> Mask:
    if mask_HW is None:
        return np.zeros((shape[0] * scale, shape[1] * scale), dtype=bool)
    if mask_HW.shape != shape:
        raise ValueError(f"the mask is {mask_HW.shape} over an image of {shape}")
    rest_HW = np.repeat(np.repeat(mask_HW.astype(bool), scale, axis=0), scale, axis=1)
    line_HW = np.zeros_like(rest_HW)
    for _ in range(max(1, round(0.75 * scale))):
        line_HW |= outline(rest_HW)
        rest_HW &= ~line_HW
    return line_HW


def _cut(caption: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The longest head of a caption that fits ``width`` pixels, ending in an ellipsis when cut."""
    if font.getlength(caption) <= width:
        return caption
    heads = (caption[:length].rstrip() + "…" for length in range(len(caption) - 1, 0, -1))
    return next((head for head in heads if font.getlength(head) <= width), "")
