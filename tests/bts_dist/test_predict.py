"""Probabilities at native size, in slice order, whatever the batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bts_dist.data import SampleSource
from bts_dist.predict import predict_patient, probabilities
from shards.config import DataConfig
from shards.reader import PackedData

CPU = torch.device("cpu")


class Brightness(nn.Module):
    """Calls bright FLAIR tumour; the left half a little more so."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits = x_BCHW[:, 1:2].clone()
        logits[..., : logits.shape[-1] // 2] += 1
        return logits


def test_probabilities_are_of_the_wanted_size() -> None:
    image = torch.randn(2, 3, 16, 16)
    same = probabilities(Brightness(), image, (16, 16), precision="fp32", mirror=False)
    torch.testing.assert_close(same, Brightness()(image)[:, 0].sigmoid())
    large = probabilities(Brightness(), torch.ones(1, 3, 16, 16), (32, 48), precision="fp32", mirror=False)
    assert large.shape == (1, 32, 48)
    # Logits are resampled, not probabilities: far from the middle nothing changes.
    assert float(large[0, 0, 0]) == pytest.approx(float(torch.tensor(2.0).sigmoid()))
    assert float(large[0, 0, -1]) == pytest.approx(float(torch.tensor(1.0).sigmoid()))


def test_mirroring_averages_with_the_flipped_slice() -> None:
    image = torch.randn(2, 3, 16, 16)
    plain, mirrored, flipped = (
        probabilities(Brightness(), x, (16, 16), precision="fp32", mirror=m)
        for x, m in ((image, False), (image, True), (image.flip(-1), False))
    )
    torch.testing.assert_close(mirrored, (plain + flipped.flip(-1)) / 2)
    assert not torch.allclose(mirrored, plain)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_gives_float32_probabilities(precision: str) -> None:
    model = nn.Conv2d(3, 1, 1)
    image = torch.randn(1, 3, 8, 8)
    exact, coarse = (
        probabilities(model, image, (8, 8), precision=p, mirror=False) for p in ("fp32", precision)
    )
    assert coarse.dtype == torch.float32
    assert not torch.equal(exact, coarse)
    torch.testing.assert_close(exact, coarse, rtol=0, atol=0.02)


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_a_patient_is_predicted_in_slice_order_at_native_size(packed: Path, batch: int) -> None:
    reader = PackedData(str(packed)).test()
    source = SampleSource(reader, DataConfig(image_size=16))
    patient = reader.index.patients()[0]
    probability, truth = predict_patient(
        Brightness(), source, patient, device=CPU, batch=batch, precision="fp32", mirror=False
    )
    ids = reader.index.samples_of(patient)
    assert probability.shape == truth.shape == (len(ids), 32, 32)
    assert probability.dtype == np.float32
    assert np.array_equal(truth, np.stack([reader.read_mask(int(i)) for i in ids]))
    alone = source.batch(ids[-1:]).to(CPU)[0]
    last = probabilities(Brightness(), alone, (32, 32), precision="fp32", mirror=False)
    np.testing.assert_allclose(probability[-1], last[0].numpy(), atol=1e-6)
