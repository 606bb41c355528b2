"""Axial slices come out upright whatever way a volume lies, and go back onto its own grid."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scans import affine_of

from bts_dist.axial import AxialView
from shards.errors import InputError

AXES = [
    "".join(letters)
    for order in itertools.permutations(("RL", "AP", "SI"))
    for letters in itertools.product(*order)
]


def world(view: AxialView) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right, anterior and superior millimetres of each voxel."""
    grid = np.stack(np.meshgrid(*map(np.arange, view.shape), indexing="ij"), axis=-1)
    right, anterior, superior = np.moveaxis(grid @ view.affine[:3, :3].T + view.affine[:3, 3], -1, 0)
    return right, anterior, superior


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("tilt_deg", [0, 20])
def test_slices_go_up_rows_back_and_columns_to_the_left(axes: str, tilt_deg: float) -> None:
    view = AxialView(affine_of(axes, (1.0, 2.0, 3.0), tilt_deg), (4, 5, 6))
    right, anterior, superior = (view.slices(v) for v in world(view))
    assert superior.shape == view.slices_shape
    assert (np.diff(superior, axis=0) > 0).all()
    assert (np.diff(anterior, axis=1) < 0).all()
    assert (np.diff(right, axis=2) < 0).all()
    sides = dict(zip((letter for letter in axes), (1.0, 2.0, 3.0), strict=True))
    height, width = (next(s for a, s in sides.items() if a in pair) for pair in ("AP", "RL"))
    assert view.pixel_mm == pytest.approx((height, width))
    assert view.voxel_mm3 == pytest.approx(6)


@given(
    axes=st.sampled_from(AXES),
    zooms=st.tuples(*[st.floats(0.3, 8)] * 3),
    tilt_deg=st.floats(-44, 44),
    shape=st.tuples(*[st.integers(1, 5)] * 3),
)
def test_a_mask_of_slices_goes_back_where_it_came_from(
    axes: str, zooms: tuple[float, float, float], tilt_deg: float, shape: tuple[int, int, int]
) -> None:
    view = AxialView(affine_of(axes, zooms, tilt_deg), shape)
    volume = np.arange(np.prod(shape)).reshape(shape)
    assert view.slices(volume).shape == view.slices_shape
    assert np.array_equal(view.volume(view.slices(volume)), volume)
    assert view.voxel_mm3 == pytest.approx(np.prod(zooms))


def test_oblong_pixels_are_noted() -> None:
    square, sagittal = (AxialView(affine_of("PIR", (1, 1, z)), (8, 8, 3)).notes() for z in (1.1, 6))
    assert square == ()
    assert "1.00 × 6.00 mm" in sagittal[0]


@pytest.mark.parametrize("wrong", [0.0, np.nan])
def test_a_singular_affine_is_refused(wrong: float) -> None:
    affine = affine_of("RAS", (1, 1, 1))
    affine[:3, 1] = wrong
    with pytest.raises(InputError, match="singular"):
        AxialView(affine, (2, 2, 2))
