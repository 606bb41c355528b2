"""Every metric against MONAI's or scikit-image's, on drawn, phantom and, where there are any, real masks.

BTS_LGG names the real data set's kaggle_3m folder.  MONAI's figures are float32, which is where 1e-6 comes from.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.metrics import (
    compute_absolute_volume_difference,
    compute_average_surface_distance,
    compute_confusion_matrix_metric,
    compute_dice,
    compute_hausdorff_distance,
    compute_iou,
    compute_surface_dice,
    get_confusion_matrix,
)
from monai.metrics.calibration import calibration_binning
from monai.metrics.utils import get_edge_surface_distance
from scipy import ndimage
from skimage.measure import label

from bts_dist.calibration import BINS
from bts_dist.config import ScoreConfig
from bts_dist.counts import Mask
from bts_dist.evaluation import Evaluation, evaluate, result
from bts_dist.surface import Spacing
from bts_dist.thresholds import CURVE
from shards.config import PhantomConfig
from shards.layout import find_patients
from shards.meta import Facts
from shards.phantom import render
from shards.source import read_volume
from shards.store import open_store

# Empty masks are the point; what MONAI calls of its own is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:monai", "ignore::FutureWarning:monai")

LGG = Path(os.environ.get("BTS_LGG", "unset"))
SPACINGS = ((1.0, 1.0, 1.0), (5.0, 0.9, 0.9))
CHANGES = ("shifted", "swollen", "stray", "holed")
EDGES = ("nothing", "all", "a voxel", "another voxel")


def ellipsoid(centre: tuple[int, int, int], radii: tuple[int, int, int]) -> Mask:
    offsets = np.indices((12, 40, 40)) - np.reshape(centre, (3, 1, 1, 1))
    mask: Mask = ((offsets / np.reshape(radii, (3, 1, 1, 1))) ** 2).sum(axis=0) <= 1
    return mask


DRAWN = {
    "shifted": (ellipsoid((6, 20, 23), (4, 9, 7)), ellipsoid((5, 19, 20), (4, 9, 7))),
    "swollen": (ellipsoid((6, 20, 20), (5, 13, 11)), ellipsoid((6, 20, 20), (4, 9, 7))),
    "stray": (
        ellipsoid((6, 20, 20), (4, 9, 7)) | ellipsoid((2, 4, 35), (2, 4, 4)),
        ellipsoid((6, 20, 20), (4, 9, 7)),
    ),
    "at border": (ellipsoid((0, 2, 38), (4, 6, 6)), ellipsoid((1, 0, 35), (4, 6, 6))),
}


def changed(truth: Mask, change: str) -> Mask:
    """What a model might have predicted in the truth's place."""
    match change:
        case "shifted":
            return np.roll(truth, (1, 3, -2), (0, 1, 2))
        case "swollen":
            return ndimage.binary_dilation(truth, iterations=2)
        case "stray":
            stray = truth.copy()
            stray[: len(truth) // 2, 2:9, 3:12] = True
            return stray
        case _:
            return truth & (np.indices(truth.shape).sum(axis=0) % 5 > 0)


def edge_case(name: str) -> Mask:
    mask = np.zeros((3, 8, 8), dtype=bool)
    match name:
        case "all":
            mask[:] = True
        case "a voxel":
            mask[0, 1, 2] = True
        case "another voxel":
            mask[2, 5, 2] = True
    return mask


def evaluated(prediction: Mask, truth: Mask, spacing: Spacing = (1.0, 1.0, 1.0)) -> Evaluation:
    facts = Facts(missing=(), spacing_mm=spacing)
    return evaluate("P", "CS", facts, prediction.astype(np.float32), prediction, truth, ScoreConfig())


def figures(prediction: Mask, truth: Mask, spacing: Spacing = (1.0, 1.0, 1.0)) -> dict[str, float | None]:
    """Ours, of one patient."""
    found: dict[str, float | None] = result([evaluated(prediction, truth, spacing)], ScoreConfig())[
        "patients"
    ][0]
    return found


def batch(*masks: Mask) -> list[torch.Tensor]:
    return [torch.from_numpy(mask)[None, None].float() for mask in masks]


def rates_by_monai(prediction: Mask, truth: Mask) -> dict[str, float]:
    p, t = batch(prediction, truth)
    matrix = get_confusion_matrix(p, t)
    rates = {
        name: compute_confusion_matrix_metric(name, matrix).item()
        for name in ("sensitivity", "specificity", "precision")
    }
    return rates | {
        "dice": compute_dice(p, t, ignore_empty=False).item(),
        "iou": compute_iou(p, t, ignore_empty=False).item(),
    }


def surfaces_by_monai(prediction: Mask, truth: Mask, spacing: Spacing) -> dict[str, float]:
    p, t = batch(prediction, truth)
    return {
        "hd95": compute_hausdorff_distance(p, t, True, percentile=95, spacing=spacing).item(),
        "asd": compute_average_surface_distance(p, t, True, symmetric=True, spacing=spacing).item(),
        "surface_dice": compute_surface_dice(p, t, [2.0], True, spacing=spacing).item(),
    }


def hd95_of_monais_distances(prediction: Mask, truth: Mask, spacing: Spacing) -> float:
    """As ``compute_hausdorff_distance``, but for the rank of the percentile.

    ``torch.quantile`` computes it as float32: among 20,000 distances it is off by up to a thousandth of the step
    from one to the next, which shows in the fifth digit.
    """
    p, t = (torch.from_numpy(mask) for mask in (prediction, truth))
    _, distances, _ = get_edge_surface_distance(p, t, spacing=spacing, symmetric=True)
    return max(float(np.percentile(directed.numpy().astype(np.float64), 95)) for directed in distances)


def lesions_by_skimage(prediction: Mask, truth: Mask) -> tuple[int, int, int]:
    true, predicted = label(truth, connectivity=3), label(prediction, connectivity=3)
    found = [number for number in range(1, true.max() + 1) if prediction[true == number].any()]
    imagined = [number for number in range(1, predicted.max() + 1) if not truth[predicted == number].any()]
    return len(found), len(imagined), int(true.max()) - len(found)


def check(prediction: Mask, truth: Mask, spacing: Spacing) -> None:
    """Compare all figures of two masks, neither of them empty."""
    ours = figures(prediction, truth, spacing)
    for name, value in rates_by_monai(prediction, truth).items():
        assert ours[name] == pytest.approx(value, abs=1e-6), name
    by_monai = surfaces_by_monai(prediction, truth, spacing)
    by_monai["hd95"] = hd95_of_monais_distances(prediction, truth, spacing)
    for name, value in by_monai.items():
        assert ours[name] == pytest.approx(value, rel=1e-6, abs=1e-6), name
    difference = compute_absolute_volume_difference(*batch(prediction, truth)).item()
    assert ours["volume_error"] == pytest.approx(difference / truth.sum(), abs=1e-6)
    lesions = tuple(ours[f"lesions_{kind}"] for kind in ("found", "imagined", "missed"))
    assert lesions == lesions_by_skimage(prediction, truth)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", list(DRAWN))
def test_drawn_masks(name: str, spacing: Spacing) -> None:
    check(*DRAWN[name], spacing)
    ours, by_monai = figures(*DRAWN[name], spacing), surfaces_by_monai(*DRAWN[name], spacing)
    assert ours["hd95"] == pytest.approx(by_monai["hd95"], rel=1e-6)


@pytest.mark.parametrize("change", CHANGES)
def test_phantom_masks(change: str) -> None:
    config = PhantomConfig(patients=2, size=48, min_slices=9, max_slices=11, seed=3)
    for number, spacing in enumerate(SPACINGS):
        _, mask = render(config, number)
        assert mask.any()
        check(changed(mask > 0, change), mask > 0, spacing)


def real_truths() -> Iterator[Mask]:
    store = open_store(str(LGG))
    patients, _ = find_patients(store)
    for patient in patients[::10]:
        yield read_volume(store, patient).mask_NHW > 0


@pytest.mark.skipif(not LGG.is_dir(), reason="BTS_LGG does not name the real data set's kaggle_3m folder")
def test_real_masks() -> None:
    for number, truth in enumerate(real_truths()):
        check(changed(truth, CHANGES[number % len(CHANGES)]), truth, SPACINGS[number % len(SPACINGS)])


# Where masks are empty, full, or a voxel


@pytest.mark.parametrize("truth", EDGES)
@pytest.mark.parametrize("prediction", EDGES)
def test_where_monai_has_a_figure_it_is_ours_and_else_our_rule_holds(prediction: str, truth: str) -> None:
    p, t = edge_case(prediction), edge_case(truth)
    ours = figures(p, t)
    for name, value in (rates_by_monai(p, t) | surfaces_by_monai(p, t, SPACINGS[0])).items():
        assert np.isfinite(value) or name not in ("dice", "iou")
        if np.isfinite(value):
            assert ours[name] == pytest.approx(value, abs=1e-6), name
        elif not p.any() and not t.any():
            assert ours[name] == {"hd95": 0, "asd": 0, "surface_dice": 1}.get(name), name
        else:
            assert ours[name] is None, name
    assert ours["volume_error"] == (abs(p.sum() - t.sum()) / t.sum() if t.any() else None if p.any() else 0)
    assert tuple(ours[f"lesions_{kind}"] for kind in ("found", "imagined", "missed")) == lesions_by_skimage(
        p, t
    )


# Probabilities


def test_calibration_and_thresholds() -> None:
    rng = np.random.default_rng(0)
    probability = rng.beta(0.4, 0.8, (3, 24, 24)).astype(np.float32)
    truth = rng.random(probability.shape) < probability**1.5
    found = result(
        [evaluate("P", "CS", Facts((), None), probability, probability > 0.5, truth, ScoreConfig())],
        ScoreConfig(),
    )

    p, t = torch.from_numpy(probability)[None, None], torch.from_numpy(truth)[None, None]
    mean_p, share, counts = (figure[0, 0].numpy() for figure in calibration_binning(p, t, BINS))
    ours = found["calibration"]["all"]
    assert [bin_["voxels"] for bin_ in ours["bins"]] == counts.tolist()
    assert [bin_["mean_probability"] for bin_ in ours["bins"]] == pytest.approx(mean_p.tolist(), abs=1e-6)
    assert [bin_["tumour_share"] for bin_ in ours["bins"]] == pytest.approx(share.tolist(), abs=1e-6)
    error = np.average(abs(mean_p - share), weights=counts)
    assert ours["ece"]["mean"] == pytest.approx(error, abs=1e-6)
    assert ours["brier"]["mean"] == pytest.approx(((p - t.float()) ** 2).mean().item(), abs=1e-6)

    assert [point["threshold"] for point in found["thresholds"]] == list(CURVE)
    for point in found["thresholds"]:
        rates = rates_by_monai(probability > point["threshold"], truth)
        assert point["dice/patient"] == pytest.approx(rates["dice"], abs=1e-6)
        assert point["sensitivity/pooled"] == pytest.approx(rates["sensitivity"], abs=1e-6)
        assert point["precision/pooled"] == pytest.approx(rates["precision"], abs=1e-6)
