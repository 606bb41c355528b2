"""Figures and scaling as tensor operations are those of packing and reading."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from bts_dist.volume_input import head_figures, resize_box
from shards import verify
from shards.config import PhantomConfig
from shards.phantom import render

Pixels = NDArray[np.uint8]


def resized(image_HWC: Pixels, size: int) -> Pixels:
    image = torch.from_numpy(image_HWC).permute(2, 0, 1)[None].float()
    return resize_box(image, size)[0].permute(1, 2, 0).numpy().astype(np.uint8)


def by_pillow(image_HWC: Pixels, size: int) -> Pixels:
    return np.asarray(Image.fromarray(image_HWC).resize((size, size), Image.Resampling.BOX))


def assert_same_figures(volume_NHWC: Pixels) -> None:
    mine = head_figures(torch.from_numpy(volume_NHWC))
    for found, packed in zip(mine, verify.head_figures(volume_NHWC), strict=True):
        assert found.dtype == torch.float32
        assert found.tolist() == np.float32([round(value, 4) for value in packed]).tolist()


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 24), st.integers(1, 24), st.floats(0.5, 90)
)
def test_the_figures_are_those_of_packing(seed: int, num: int, height: int, width: int, scale: float) -> None:
    grey = np.random.default_rng(seed).gamma(1, scale, (num, height, width, 3))
    assert_same_figures(grey.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("levels", [(0, 0, 0), (7, 0, 255), (0, 255, 1)])
def test_the_figures_of_a_volume_of_one_grey_level(levels: tuple[int, int, int]) -> None:
    assert_same_figures(np.full((2, 5, 4, 3), levels, np.uint8))


def test_the_figures_of_a_phantom() -> None:
    image_NHWC, _ = render(PhantomConfig(size=64, min_slices=6, max_slices=6), 3)
    assert_same_figures(image_NHWC)


@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.integers(0, 40), st.integers(1, 80))
def test_scaling_is_that_of_reading(seed: int, height: int, wider: int, size: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, height + wider, 3), np.uint8)
    assert np.array_equal(resized(image, size), by_pillow(image, size))


@pytest.mark.parametrize(
    ("height", "width", "size"), [(256, 256, 128), (256, 256, 96), (57, 57, 18), (61, 61, 244)]
)
def test_scaling_where_pixels_lie_on_the_edge_of_a_box(height: int, width: int, size: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    assert np.array_equal(resized(image, size), by_pillow(image, size))


@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(1, 30), st.integers(1, 60))
def test_tall_slices_differ_by_a_grey_level_at_most(seed: int, width: int, taller: int, size: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (width + taller, width, 3), np.uint8)
    difference = resized(image, size).astype(int) - by_pillow(image, size)
    assert np.abs(difference).max() <= 1
