"""A patient's slices come back from what the page carries, and its colours are told apart by every reader."""

import base64
import io
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from PIL import Image

from bts_dist.counts import count
from bts_dist.gallery import (
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    TRUE_POSITIVE,
    fitting,
    patient_slices,
    run_lengths,
)

MASKS = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9))

# Machado, Oliveira and Fernandes 2009, severity 1.0: linear RGB as seen without one of the three cones.
VISION = {
    "all cones": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = np.array([0.95047, 1.0, 1.08883])


def restored(runs: list[int], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """What ``run_lengths`` was made from, by its description."""
    pixels = [index % 2 == 1 for index, length in enumerate(runs) for _ in range(length)]
    pixels += [False] * (int(np.prod(shape)) - len(pixels))
    return np.array(pixels, dtype=bool).reshape(shape)


def lab(rgb: tuple[int, int, int], seen: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIE L*a*b* of an sRGB colour as seen with given cones."""
    share = np.array(rgb) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(seen @ linear, 0, 1) / WHITE
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@given(MASKS)
def test_a_mask_comes_back_from_its_run_lengths(mask: NDArray[np.bool_]) -> None:
    runs = run_lengths(mask)
    assert np.array_equal(restored(runs, mask.shape), mask)
    assert sum(runs[1::2]) == mask.sum()
    assert all(length > 0 for length in runs[1:])


def test_run_lengths_by_hand() -> None:
    assert run_lengths(np.zeros((3, 4), bool)) == []
    assert run_lengths(np.ones((3, 4), bool)) == [0, 12]
    assert run_lengths(np.array([[0, 1, 1], [1, 0, 1], [0, 0, 0]], bool)) == [1, 3, 1, 1]


@pytest.fixture
def volume() -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_]]:
    """Three slices of 24 × 40 pixels, each brighter than the one before it, with masks that differ."""
    image = np.zeros((3, 24, 40, 3), np.uint8)
    image[..., 0] = 255
    for number in range(3):
        image[number, 4:20, 6:34, 1] = 60 * (number + 1)
    truth = np.zeros((3, 24, 40), bool)
    truth[1, 8:12, 10:20] = True
    prediction = np.roll(truth, 2, axis=2)
    return image, truth, prediction


def test_slices_carry_number_masks_and_counts(volume) -> None:
    image, truth, prediction = volume
    counts = count(prediction, truth)
    found = patient_slices("P", [5, 6, 9], image, truth, prediction, counts)
    assert (found["patient"], found["height"], found["width"]) == ("P", 24, 40)
    assert [each["slice"] for each in found["slices"]] == [5, 6, 9]
    assert [[each[name] for name in ("tp", "fp", "fn")] for each in found["slices"]] == counts.tolist()
    for number, each in enumerate(found["slices"]):
        assert np.array_equal(restored(each["truth"], (24, 40)), truth[number])
        assert np.array_equal(restored(each["prediction"], (24, 40)), prediction[number])


def test_pictures_are_flair_in_one_window_for_the_volume(volume) -> None:
    image, truth, prediction = volume
    found = patient_slices("P", [1, 2, 3], image, truth, prediction, count(prediction, truth))
    levels = []
    for each in found["slices"]:
        with Image.open(io.BytesIO(base64.b64decode(each["image"]))) as opened:
            assert opened.format == "WEBP"
            grey = np.array(opened.convert("L"))
        assert grey.shape == (24, 40)
        assert grey[:2].max() <= 4
        levels.append(float(grey[8:16, 12:28].mean()))
    assert levels == pytest.approx([85, 170, 255], abs=4)


def test_a_volume_without_contrast_is_black(volume) -> None:
    image, truth, prediction = volume
    found = patient_slices("P", [1, 2, 3], image * 0 + 7, truth, prediction, count(prediction, truth))
    with Image.open(io.BytesIO(base64.b64decode(found["slices"][0]["image"]))) as opened:
        assert np.array(opened.convert("L")).max() == 0


def test_numbers_must_be_as_many_as_slices(volume) -> None:
    image, truth, prediction = volume
    with pytest.raises(ValueError, match="longer"):
        patient_slices("P", [1, 2], image, truth, prediction, count(prediction, truth))


@given(st.lists(st.integers(0, 50), max_size=8), st.integers(0, 200))
def test_a_page_carries_the_longest_head_that_fits(sizes: list[int], budget: int) -> None:
    patients = [{"slices": [{"image": "x" * size}, {"image": "x"}]} for size in sizes]
    head = fitting(patients, budget)
    assert head == patients[: len(head)]
    assert sum(size + 1 for size in sizes[: len(head)]) <= budget
    assert len(head) == len(patients) or sum(size + 1 for size in sizes[: len(head) + 1]) > budget


@pytest.mark.parametrize("cones", VISION)
def test_the_colours_of_the_error_map_are_told_apart(cones: str) -> None:
    seen = [lab(colour, VISION[cones]) for colour in (TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE)]
    # A difference of 2 is just seen side by side; areas far apart need many times that.
    assert min(float(np.linalg.norm(a - b)) for a, b in combinations(seen, 2)) > 30


def test_red_and_green_would_not_be() -> None:
    red, green = (lab(colour, VISION["deuteranopia"]) for colour in ((200, 90, 60), (120, 130, 60)))
    assert np.linalg.norm(red - green) < 30
