"""Validation: counts at native size, a threshold that is chosen, pictures."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bts_dist.account import Account
from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.data import SampleSource
from bts_dist.runtime import LocalRuntime
from bts_dist.validate import THRESHOLDS, _summarise, draw_overlays, validate
from shards.reader import PackedData


class Oracle(nn.Module):
    """Knows the truth of the validation set and is ``sure`` of it, with a border of half that."""

    def __init__(self, source: SampleSource, sure: float) -> None:
        super().__init__()
        batch = source.batch(np.arange(len(source.reader.index)))
        self.image_BCHW, self.truth_B1HW = batch.to(torch.device("cpu"))
        self.sure = sure

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out = []
        for x in x_BCHW:
            plain = (self.image_BCHW - x).abs().sum(dim=(1, 2, 3))
            mirrored = (self.image_BCHW.flip(-1) - x).abs().sum(dim=(1, 2, 3))
            flip = mirrored.min() < plain.min()
            truth = self.truth_B1HW[int((mirrored if flip else plain).argmin())]
            out.append(truth.flip(-1) if flip else truth)
        return torch.logit(torch.stack(out) * self.sure + 1e-6)


def val(config: Config) -> SampleSource:
    return SampleSource(PackedData(config.data.shards).training("val"), config.data)


def test_the_truth_itself_scores_one(config: Config, runtime: LocalRuntime) -> None:
    source = val(config)
    found = validate(Oracle(source, 0.99), source, config, runtime, Account())
    assert found.dice == 1
    assert found.threshold == 0.5
    assert {key: found.metrics[key] for key in found.metrics if "threshold" not in key} == {
        "val/dice/patient": 1,
        "val/dice/patient_tuned": 1,
        "val/dice/slice": 1,
        "val/dice/pooled": 1,
        "val/iou/pooled": 1,
    }


def test_a_hesitant_model_gets_a_lower_threshold(config: Config, runtime: LocalRuntime) -> None:
    source = val(config)
    found = validate(Oracle(source, 0.35), source, config, runtime, Account())
    assert found.dice == 0
    assert found.threshold == 0.3
    assert found.metrics["val/dice/patient_tuned"] == 1
    assert found.metrics["val/dice/slice"] == pytest.approx(6 / 8), "six slices without tumour, two missed"


def test_figures_are_plain_numbers(config: Config, runtime: LocalRuntime) -> None:
    source = val(config)
    found = validate(Oracle(source, 0.9), source, config, runtime, Account())
    assert {type(value) for value in found.metrics.values()} == {float}


def test_thresholds_and_figures_follow_from_the_counts() -> None:
    assert THRESHOLDS == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    counts = np.zeros((9, 2, 3), np.int64)
    counts[:] = [[1, 0, 3], [0, 2, 0]]  # tp, fp, fn of two slices
    counts[7] = [[3, 0, 1], [0, 0, 0]]
    found = _summarise([counts])
    assert found.threshold == 0.8
    assert found.dice == pytest.approx(2 / 7)
    assert found.metrics["val/dice/patient_tuned"] == pytest.approx(6 / 7)
    assert found.metrics["val/dice/slice"] == pytest.approx((2 / 5 + 0) / 2)
    assert found.metrics["val/iou/pooled"] == pytest.approx(1 / 6)


@pytest.mark.parametrize(("wanted", "drawn"), [(0, 0), (1, 1), (9, 2)])
def test_the_slice_with_the_most_tumour_is_drawn(config: Config, wanted: int, drawn: int) -> None:
    source = val(config)
    config = with_overrides(config, {"track.overlays": wanted})
    pictures = draw_overlays(Oracle(source, 0.9), source, config, torch.device("cpu"))
    assert len(pictures) == drawn
    index = source.reader.index
    for picture, patient in zip(pictures, index.patients(), strict=False):
        ids = index.samples_of(patient)
        number = index.slice_number[ids[index.tumour_pixels[ids].argmax()]]
        assert (picture.patient, picture.slice_number) == (patient, number)
        assert picture.truth_HW.sum() == index.tumour_pixels[ids].max()
        assert picture.image_HWC.shape == (*picture.prediction_HW.shape, 3)


def test_an_output_that_is_not_finite_is_no_prediction_of_nothing(
    config: Config, runtime: LocalRuntime
) -> None:
    source = val(config)
    with pytest.raises(FloatingPointError, match=f"{source.reader.index.patients()[0][:4]}.* is not finite"):
        validate(Oracle(source, float("nan")), source, config, runtime, Account())
