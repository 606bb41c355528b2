import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage
from scipy.spatial.distance import cdist

from bts_dist.counts import Mask
from bts_dist.surface import SurfaceScores, bounding_box, find_surfaces, surface_scores

Spacing = tuple[float, float, float]

spacings = st.tuples(*[st.sampled_from([0.3, 0.9, 1.0, 1.7, 5.0])] * 3)


@st.composite
def mask_pairs(draw: st.DrawFn) -> tuple[Mask, Mask]:
    """Two masks with at least one voxel each, somewhere in a larger volume."""
    shape = draw(array_shapes(min_dims=3, max_dims=3, max_side=5))
    one, other = draw(arrays(bool, shape)), draw(arrays(bool, shape))
    assume(one.any() and other.any())
    margins = [(draw(st.integers(0, 3)), draw(st.integers(0, 3))) for _ in shape]
    return np.pad(one, margins), np.pad(other, margins)


def scores_of(
    prediction: Mask, truth: Mask, spacing: Spacing = (1.0, 1.0, 1.0), tolerance: float = 2.0
) -> SurfaceScores:
    return surface_scores(find_surfaces(prediction, truth), spacing, tolerance)


def voxel_surface(mask: Mask) -> list[tuple[int, int, int]]:
    """The definition, voxel by voxel: part of the mask, with a face neighbour that is not."""
    inside = {tuple(voxel) for voxel in np.argwhere(mask).tolist()}
    steps = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    return [(n, h, w) for n, h, w in inside if any((n + i, h + j, w + k) not in inside for i, j, k in steps)]


def scores_by_all_pairs(prediction: Mask, truth: Mask, spacing: Spacing, tolerance: float) -> SurfaceScores:
    distances = cdist(*(np.array(voxel_surface(mask)) * spacing for mask in (prediction, truth)))
    to_truth, to_prediction = distances.min(axis=1), distances.min(axis=0)
    within = (to_truth <= tolerance + 1e-9).sum() + (to_prediction <= tolerance + 1e-9).sum()
    return SurfaceScores(
        hd95=max(np.percentile(to_truth, 95), np.percentile(to_prediction, 95)),
        asd=(to_truth.sum() + to_prediction.sum()) / (len(to_truth) + len(to_prediction)),
        surface_dice=within / (len(to_truth) + len(to_prediction)),
    )


def scores_by_distance_transform(
    prediction: Mask, truth: Mask, spacing: Spacing, tolerance: float
) -> SurfaceScores:
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (prediction, truth)]
    to_prediction, to_truth = (ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in surfaces)
    directed = [to_truth[surfaces[0]], to_prediction[surfaces[1]]]
    return SurfaceScores(
        hd95=max(np.percentile(distances, 95) for distances in directed),
        asd=np.concatenate(directed).mean(),
        surface_dice=(np.concatenate(directed) <= tolerance + 1e-9).mean(),
    )


def voxels(*where: tuple[int, int, int], shape: tuple[int, int, int] = (3, 10, 10)) -> Mask:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(np.transpose(where))] = True
    return mask


# By hand


def test_two_empty_masks_agree() -> None:
    empty = np.zeros((2, 4, 4), dtype=bool)
    assert scores_of(empty, empty) == SurfaceScores(hd95=0.0, asd=0.0, surface_dice=1.0)


def test_one_empty_mask_leaves_distances_undefined_and_agrees_nowhere() -> None:
    empty, full = np.zeros((2, 4, 4), dtype=bool), np.ones((2, 4, 4), dtype=bool)
    assert scores_of(empty, full) == SurfaceScores(hd95=None, asd=None, surface_dice=0.0)
    assert scores_of(full, empty) == SurfaceScores(hd95=None, asd=None, surface_dice=0.0)


def test_single_voxels_lie_their_distance_apart() -> None:
    one, other = voxels((0, 0, 0)), voxels((0, 3, 4))
    assert scores_of(one, other, tolerance=4.9) == SurfaceScores(hd95=5.0, asd=5.0, surface_dice=0.0)
    assert scores_of(one, other, tolerance=5.0) == SurfaceScores(hd95=5.0, asd=5.0, surface_dice=1.0)


@pytest.mark.parametrize(("other", "distance"), [((1, 0, 0), 5.0), ((0, 1, 0), 0.5), ((0, 0, 1), 2.0)])
def test_spacing_follows_the_axes(other: tuple[int, int, int], distance: float) -> None:
    assert scores_of(voxels((0, 0, 0)), voxels(other), spacing=(5.0, 0.5, 2.0)).hd95 == distance


def test_the_worse_direction_decides() -> None:
    truth = voxels((0, 0, 0))
    prediction = voxels((0, 0, 0), (0, 0, 4))
    # truth to prediction: 0.  Prediction to truth: 0 and 4, whose 95th percentile is 3.8
    scores = scores_of(prediction, truth)
    assert scores.hd95 == pytest.approx(3.8)
    assert scores.surface_dice == 2 / 3
    assert scores_of(truth, prediction) == scores


def test_directions_are_not_pooled() -> None:
    truth = voxels(*((0, 0, column) for column in range(10)))
    prediction = voxels((0, 0, 0))
    # truth to prediction: 0 to 9, 95th percentile 8.55; with the one 0 of the other direction pooled in, 8.5
    assert scores_of(prediction, truth).hd95 == pytest.approx(8.55)


def test_only_surfaces_count_and_the_border_is_outside() -> None:
    cube = np.ones((5, 5, 5), dtype=bool)
    hollow = cube.copy()
    hollow[2, 2, 2] = False
    # The cube's surface is 98 voxels.  The hole bares 6 more, each 1 from it: of 98 zeros and 6 ones the 95th
    # percentile lies 0.85 of the way from the last zero to the first one.
    scores = scores_of(hollow, cube, tolerance=0.5)
    assert scores.hd95 == pytest.approx(0.85)
    assert scores.surface_dice == (98 + 98) / (98 + 98 + 6)


def test_tolerance_forgives_binary_rounding() -> None:
    assert 3 * 0.1 > 0.3
    scores = scores_of(voxels((0, 0, 0)), voxels((0, 0, 3)), spacing=(1.0, 0.1, 0.1), tolerance=0.3)
    assert scores.surface_dice == 1.0


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        (np.zeros((1, 2, 2), np.uint8), np.zeros((1, 2, 2), bool), "prediction is uint8"),
        (np.zeros((1, 2, 2), bool), np.zeros((2, 2), bool), r"truth is bool of shape \(2, 2\)"),
        (np.zeros((1, 2, 2), bool), np.zeros((1, 2, 3), bool), "must be equal"),
    ],
)
def test_what_is_no_pair_of_volumes_is_refused(prediction: Mask, truth: Mask, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scores_of(prediction, truth)


# Against other computations


@settings(max_examples=80)
@given(mask_pairs(), spacings, st.sampled_from([0.0, 0.9, 1.0, 2.0, 5.0]))
def test_agrees_with_the_definition_over_all_pairs(
    masks: tuple[Mask, Mask], spacing: Spacing, tolerance: float
) -> None:
    scores = scores_of(*masks, spacing, tolerance)
    expected = scores_by_all_pairs(*masks, spacing, tolerance)
    assert scores.hd95 == pytest.approx(expected.hd95, abs=1e-9)
    assert scores.asd == pytest.approx(expected.asd, abs=1e-9)
    assert scores.surface_dice == pytest.approx(expected.surface_dice, abs=1e-12)


@settings(max_examples=80)
@given(mask_pairs(), spacings, st.sampled_from([0.0, 1.0, 2.0]))
def test_agrees_with_distance_transforms_of_the_whole_volume(
    masks: tuple[Mask, Mask], spacing: Spacing, tolerance: float
) -> None:
    scores = scores_of(*masks, spacing, tolerance)
    expected = scores_by_distance_transform(*masks, spacing, tolerance)
    # Of two voxels as near as each other but for rounding, each method may take another.
    assert (scores.hd95, scores.asd) == pytest.approx((expected.hd95, expected.asd), rel=1e-14, abs=0)
    assert scores.surface_dice == expected.surface_dice


@settings(max_examples=40)
@given(mask_pairs())
def test_the_box_holds_the_mask_and_no_more(masks: tuple[Mask, Mask]) -> None:
    assert bounding_box(masks[0]) == ndimage.find_objects(masks[0].astype(int))[0]


# Properties


@settings(max_examples=40)
@given(arrays(bool, array_shapes(min_dims=3, max_dims=3, max_side=6)), spacings)
def test_a_mask_lies_on_itself(mask: Mask, spacing: Spacing) -> None:
    assert scores_of(mask, mask, spacing, tolerance=0.0) == SurfaceScores(hd95=0.0, asd=0.0, surface_dice=1.0)


@settings(max_examples=60)
@given(mask_pairs(), spacings)
def test_scores_are_symmetric_and_in_range(masks: tuple[Mask, Mask], spacing: Spacing) -> None:
    scores = scores_of(*masks, spacing)
    assert scores_of(*masks[::-1], spacing) == scores
    assert scores.hd95 is not None
    assert scores.asd is not None
    assert 0 <= scores.asd <= np.linalg.norm(np.array(masks[0].shape) * spacing)
    assert 0 <= scores.hd95 <= np.linalg.norm(np.array(masks[0].shape) * spacing)
    assert 0 <= scores.surface_dice <= 1


@settings(max_examples=60)
@given(mask_pairs(), st.floats(0, 5), st.floats(0, 5))
def test_surface_dice_grows_with_the_tolerance(masks: tuple[Mask, Mask], one: float, other: float) -> None:
    tight, loose = (scores_of(*masks, tolerance=t).surface_dice for t in sorted((one, other)))
    assert tight <= loose
