"""Augmentation: fixed by (seed, epoch, sample) alone, and one change for image and truth."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from bts_dist import augment as module
from bts_dist.augment import augment, uniforms
from bts_dist.config import AugmentConfig

OFF = AugmentConfig(flip=0, affine=0, elastic=0, intensity=0, noise=0, drop_sequence=0)
ALL = AugmentConfig(flip=0.5, flip_vertical=0.5, affine=1, elastic=1, intensity=1, noise=1, drop_sequence=0.5)
IDS = np.array([3, 11, 0, 7, 42, 8], np.int64)


def batch(num: int = len(IDS), side: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    image_BCHW = torch.randn(num, 3, side, side, generator=generator)
    truth_B1HW = torch.zeros(num, 1, side, side)
    truth_B1HW[:, :, side // 4 : side // 2, side // 3 : side // 2] = 1
    return image_BCHW, truth_B1HW


def run(
    config: AugmentConfig, ids: NDArray[np.int64] = IDS, epoch: int = 2, rows: list[int] | None = None
) -> tuple[Tensor, Tensor]:
    image, truth = batch()
    if rows is not None:
        image, truth, ids = image[rows], truth[rows], ids[rows]
    return augment(image, truth, ids, seed=1, epoch=epoch, config=config)


@pytest.mark.parametrize("rows", [[0], [5, 4, 3, 2, 1, 0], [1, 4], [2, 2, 0]])
def test_a_sample_is_changed_alike_in_any_batch_and_order(rows: list[int]) -> None:
    image, truth = run(ALL)
    some_image, some_truth = run(ALL, rows=rows)
    torch.testing.assert_close(some_image, image[rows], rtol=1e-5, atol=1e-5)
    assert torch.equal(some_truth, truth[rows])


def test_epochs_seeds_and_samples_are_changed_differently() -> None:
    image, truth = batch()
    same = torch.stack([image[0]] * len(IDS))
    changed, _ = augment(same, truth, IDS, seed=1, epoch=2, config=ALL)
    assert all(not torch.allclose(changed[0], other) for other in changed[1:])
    again, _ = augment(same, truth, IDS, seed=1, epoch=2, config=ALL)
    assert torch.equal(changed, again)
    for seed, epoch in ((1, 3), (2, 2)):
        other, _ = augment(same, truth, IDS, seed=seed, epoch=epoch, config=ALL)
        assert all(not torch.allclose(a, b) for a, b in zip(changed, other, strict=True))


def test_with_all_probabilities_nought_nothing_changes() -> None:
    image, truth = batch()
    changed, changed_truth = run(OFF)
    assert torch.equal(changed, image)
    assert torch.equal(changed_truth, truth)


def test_the_inputs_are_left_alone() -> None:
    image, truth = batch()
    before = image.clone(), truth.clone()
    augment(image, truth, IDS, seed=1, epoch=0, config=ALL)
    assert torch.equal(image, before[0])
    assert torch.equal(truth, before[1])


def test_a_flip_turns_left_and_right() -> None:
    image, truth = batch()
    flipped, flipped_truth = run(OFF.model_copy(update={"flip": 1.0}))
    torch.testing.assert_close(flipped, image.flip(-1), rtol=0, atol=1e-4)
    assert torch.equal(flipped_truth, truth.flip(-1))
    upside_down, _ = run(OFF.model_copy(update={"flip_vertical": 1.0}))
    torch.testing.assert_close(upside_down, image.flip(-2), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"affine": 1.0, "rotate_deg": 90.0},
        {"affine": 1.0, "rotate_deg": 0.0, "scale": 0.0, "translate": 0.3},
        {"elastic": 1.0, "elastic_shift": 0.1},
        {"flip": 0.5, "flip_vertical": 0.5, "affine": 1.0, "elastic": 1.0},
    ],
    ids=lambda change: "+".join(change),
)
def test_the_truth_stays_binary_and_moves_with_the_image(change: dict[str, float]) -> None:
    _, truth = batch(side=48)
    image = truth.expand(-1, 3, -1, -1)
    config = OFF.model_copy(update=change)
    moved, moved_truth = augment(image, truth, IDS, seed=1, epoch=0, config=config)
    assert set(moved_truth.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(moved[:, :1] > 0.5, moved_truth > 0.5)
    assert not any(torch.equal(a, b) for a, b in zip(moved_truth, truth, strict=True))


def test_what_is_read_from_outside_is_no_tumour() -> None:
    image, truth = batch()
    config = OFF.model_copy(update={"affine": 1.0, "translate": 0.9, "rotate_deg": 0.0, "scale": 0.0})
    _, moved = augment(image, torch.ones_like(truth), IDS, seed=1, epoch=0, config=config)
    assert moved.mean() < 0.9


def test_the_zoom_stays_within_its_bounds() -> None:
    _, truth = batch(side=64)
    config = OFF.model_copy(update={"affine": 1.0, "rotate_deg": 0.0, "translate": 0.0, "scale": 0.5})
    centred = torch.zeros_like(truth)
    centred[:, :, 24:40, 24:40] = 1
    _, moved = augment(centred.expand(-1, 3, -1, -1), centred, IDS, seed=1, epoch=0, config=config)
    zooms = (moved.sum(dim=(1, 2, 3)) / 256).sqrt()
    assert zooms.min() > 0.45
    assert zooms.max() < 1.55
    assert zooms.max() - zooms.min() > 0.2


def test_a_dropped_sequence_shows_flair_instead() -> None:
    image, _ = batch()
    dropped, _ = run(OFF.model_copy(update={"drop_sequence": 1.0}))
    gone = [
        [bool(torch.equal(new[c], old[1])) for c in (0, 2)] for new, old in zip(dropped, image, strict=True)
    ]
    assert all(pre != post for pre, post in gone)
    assert {(True, False), (False, True)} == {tuple(pair) for pair in gone}
    assert torch.equal(dropped[:, 1], image[:, 1])


def test_intensity_changes_each_sequence_by_itself_and_no_truth() -> None:
    image, truth = batch()
    config = OFF.model_copy(update={"intensity": 1.0, "gamma": 0.0})
    changed, changed_truth = run(config)
    shift = changed.mean(dim=(2, 3)) - image.mean(dim=(2, 3))
    assert (shift[:, 0] - shift[:, 1]).abs().min() > 1e-4
    # Without gamma the change is a gain and an offset.
    for new, old in zip(changed.flatten(0, 1), image.flatten(0, 1), strict=True):
        assert np.corrcoef(new.flatten(), old.flatten())[0, 1] == pytest.approx(1, abs=1e-5)
    assert torch.equal(changed_truth, truth)


def test_noise_is_no_stronger_than_its_setting() -> None:
    image, _ = batch()
    noisy, _ = run(OFF.model_copy(update={"noise": 1.0, "noise_std": 0.2}))
    strength = (noisy - image).std(dim=(1, 2, 3))
    assert strength.max() < 0.21
    assert strength.min() > 0


def test_uniforms_are_pinned() -> None:
    # Other numbers would change every training run that is resumed across the release.
    draws = uniforms(np.array([0, 7], np.int64), seed=3, epoch=1, num=3)
    assert draws.dtype == np.float32
    wanted = [[0.035080, 0.131403, 0.813343], [0.060867, 0.566111, 0.172293]]
    np.testing.assert_allclose(draws, wanted, atol=1e-6)


def test_uniforms_are_uniform() -> None:
    draws = uniforms(np.arange(2000, dtype=np.int64), seed=0, epoch=0, num=50)
    assert draws.min() > 0
    assert draws.max() < 1
    assert draws.mean() == pytest.approx(0.5, abs=0.005)
    assert draws.std() == pytest.approx(12**-0.5, abs=0.005)
    assert abs(np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]) < 0.1


@pytest.mark.parametrize("bits", [0, 2**64 - 1])
def test_the_outermost_uniforms_lie_inside(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "hash64", lambda *words: np.full((1, 2), bits, np.uint64))
    draws = uniforms(IDS[:1], 0, 0, 2)
    assert ((draws > 0) & (draws < 1)).all()


def test_the_displacement_field_is_normal() -> None:
    draws = uniforms(np.arange(4000, dtype=np.int64), seed=0, epoch=0, num=10)
    normals = module._normals(draws)
    assert normals.shape == draws.shape
    assert normals.mean() == pytest.approx(0, abs=0.02)
    assert normals.std() == pytest.approx(1, abs=0.02)
    assert np.isfinite(normals).all()
