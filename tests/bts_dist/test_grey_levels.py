"""Any scanner's intensities become grey levels, and what is no image is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bts_dist.grey_levels import to_grey_levels
from shards.errors import InputError

RAMP = np.linspace(0, 1, 10_000).reshape(100, 10, 10)


def test_eight_bits_stay_as_they_are() -> None:
    volume = np.random.default_rng(0).integers(3, 200, (4, 5, 6)).astype(np.uint8)
    assert np.array_equal(to_grey_levels(volume, "v"), volume)


@given(gain=st.floats(0.01, 1000), offset=st.floats(-1000, 1000))
def test_a_scanners_gain_and_offset_do_not_matter(gain: float, offset: float) -> None:
    found = to_grey_levels(RAMP * gain + offset, "v")
    assert np.abs(found.astype(int) - to_grey_levels(RAMP, "v")).max() <= 1
    assert found.min() == 0
    assert found.max() == 255


def test_a_few_bright_voxels_do_not_take_the_contrast_away() -> None:
    volume = np.rint(RAMP * 900).astype(np.int16)
    bright = volume.copy()
    bright.flat[-5:] = 30_000
    assert (
        np.abs(to_grey_levels(bright, "v").astype(int) - to_grey_levels(volume, "v"))[volume < 890].max() <= 1
    )


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        (np.where(RAMP > 0.5, np.nan, RAMP), "v holds 5000 values that are NaN or infinite"),
        (np.full((3, 3, 3), np.inf, np.float32), "v holds 27 values"),
        (np.full((3, 3, 3), 7, np.int16), "v is 7 .* everywhere"),
        (np.zeros((3, 3, 3), np.uint8), "v is 0 .* everywhere"),
        (np.ones((3, 3, 3), np.complex64), "v holds complex64 values"),
    ],
)
def test_what_is_no_image_is_refused(volume: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_grey_levels(volume, "v")
