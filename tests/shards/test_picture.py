import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from shards.picture import PREDICTION, TRUTH, contact_sheet, outline, overlay, to_png, to_rgb

masks = arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def slice_of(size: int = 24) -> np.ndarray:
    image_HWC = np.random.default_rng(0).integers(0, 200, (size, size, 3), dtype=np.uint8)
    image_HWC[:4] = 0
    return image_HWC


def square(size: int = 24, start: int = 6, stop: int = 16) -> np.ndarray:
    mask_HW = np.zeros((size, size), dtype=np.uint8)
    mask_HW[start:stop, start:stop] = 1
    return mask_HW


def coloured(picture: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    return (np.array(picture) == colour).all(axis=-1)


def grey(picture: Image.Image) -> np.ndarray:
    pixels_HWC = np.array(picture)
    return (pixels_HWC == pixels_HWC[..., :1]).all(axis=-1)


def test_to_rgb_is_flair_in_grey_and_keeps_its_order():
    image_HWC = slice_of()
    rgb_HWC = to_rgb(image_HWC)
    assert rgb_HWC.dtype == np.uint8
    assert rgb_HWC.shape == image_HWC.shape
    assert (rgb_HWC == rgb_HWC[..., :1]).all()
    assert rgb_HWC.min() == 0
    assert rgb_HWC.max() == 255
    by_flair = rgb_HWC[..., 0].ravel()[np.argsort(image_HWC[..., 1].ravel())]
    assert (np.diff(by_flair.astype(int)) >= 0).all()


def test_to_rgb_ignores_the_other_sequences():
    image_HWC = slice_of()
    other_HWC = image_HWC.copy()
    other_HWC[..., [0, 2]] = 7
    assert np.array_equal(to_rgb(image_HWC), to_rgb(other_HWC))


def test_a_flat_slice_is_black():
    assert not to_rgb(np.full((8, 8, 3), 90, dtype=np.uint8)).any()


def test_outline_of_a_square_is_its_rim():
    rim_HW = square() & ~square(start=7, stop=15).astype(bool)
    assert np.array_equal(outline(square()), rim_HW.astype(bool))


@given(masks)
def test_outline_is_where_a_neighbour_is_outside(mask_HW):
    def inside(y: int, x: int) -> bool:
        return 0 <= y < mask_HW.shape[0] and 0 <= x < mask_HW.shape[1] and bool(mask_HW[y, x])

    for (y, x), drawn in np.ndenumerate(outline(mask_HW)):
        neighbours = [inside(y - 1, x), inside(y + 1, x), inside(y, x - 1), inside(y, x + 1)]
        assert drawn == (inside(y, x) and not all(neighbours))


def test_overlay_colours_exactly_the_outlines():
    truth_HW, prediction_HW = square(start=4, stop=10), square(start=13, stop=20)
    picture = overlay(slice_of(), truth_HW, prediction_HW, scale=1)
    assert np.array_equal(coloured(picture, TRUTH), outline(truth_HW))
    assert np.array_equal(coloured(picture, PREDICTION), outline(prediction_HW))
    assert np.array_equal(grey(picture), ~(outline(truth_HW) | outline(prediction_HW)))


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_lines_lie_inside_the_mask_within_its_rim(scale):
    picture = overlay(slice_of(), square() * 255, None, scale=scale)
    rim_HW = np.kron(outline(square()), np.ones((scale, scale))).astype(bool)
    line_HW = coloured(picture, TRUTH)
    assert picture.size == (24 * scale, 24 * scale)
    assert line_HW[6 * scale, 6 * scale : 16 * scale].all()
    assert not (line_HW & ~rim_HW).any()


def test_coinciding_outlines_show_both_colours_and_leave_no_gap():
    picture = overlay(slice_of(), square(), square(), scale=2)
    truth_HW, prediction_HW = coloured(picture, TRUTH), coloured(picture, PREDICTION)
    alone_HW = coloured(overlay(slice_of(), square(), None, scale=2), TRUTH)
    assert np.array_equal(truth_HW | prediction_HW, alone_HW)
    assert 0.3 < truth_HW.sum() / alone_HW.sum() < 0.7


def test_overlay_without_masks_is_grey():
    assert grey(overlay(slice_of(), None, None)).all()
    assert grey(overlay(slice_of(), np.zeros((24, 24), bool), None)).all()


def test_overlay_refuses_a_mask_of_another_size():
    with pytest.raises(ValueError, match=r"\(12, 12\) over an image of \(24, 24\)"):
        overlay(slice_of(), square(size=12, start=2, stop=4), None)


def test_contact_sheet_places_tiles_in_rows_with_captions():
    colours = ["red", "lime", "blue", "white", "yellow"]
    sheet = contact_sheet([(Image.new("RGB", (60, 40), colour), "caption") for colour in colours], columns=3)
    row_height = sheet.height // 2
    assert sheet.width > 3 * 60
    assert row_height > 40
    for index, colour in enumerate(colours):
        area = coloured(sheet, Image.new("RGB", (1, 1), colour).getpixel((0, 0)))
        rows, columns = np.nonzero(area)
        assert area.sum() == 60 * 40
        assert (rows.min() > row_height - 10) == (index >= 3)
        below = np.array(sheet)[rows.max() + 1 : rows.max() + 25, columns.min() : columns.max() + 1]
        assert below.max() > 150


def test_contact_sheet_has_no_more_columns_than_tiles():
    tile = (Image.new("RGB", (60, 40)), "")
    assert contact_sheet([tile], columns=8).size == contact_sheet([tile], columns=1).size


def test_a_long_caption_stays_in_its_cell():
    tiles = [
        (Image.new("RGB", (60, 40)), "TCGA_DU_5851_19950428, slice 12"),
        (Image.new("RGB", (60, 40)), ""),
    ]
    captions = np.array(contact_sheet(tiles, columns=2))[50:]
    background = captions[-1, -1]
    drawn_columns = np.nonzero((captions != background).any(axis=(0, 2)))[0]
    assert drawn_columns.size
    assert drawn_columns.max() <= 8 + 60


@pytest.mark.parametrize(("tiles", "columns"), [([], 3), ([(Image.new("RGB", (4, 4)), "a")], 0)])
def test_contact_sheet_needs_a_tile_and_a_column(tiles, columns):
    with pytest.raises(ValueError, match="needs a tile and a column"):
        contact_sheet(tiles, columns)


def test_to_png_keeps_the_pixels():
    picture = overlay(slice_of(), square(), None)
    again = Image.open(io.BytesIO(to_png(picture)))
    assert again.format == "PNG"
    assert np.array_equal(np.array(again), np.array(picture))
