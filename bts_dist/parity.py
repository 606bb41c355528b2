"""Whether an exported model says what scoring says: both predict the same slices, and the figures are compared.

Slices come from validation patients where the data set can be read, and from generated phantoms elsewhere.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bts_dist.calibration import Probabilities
from bts_dist.config import Config
from bts_dist.data import SampleSource
from bts_dist.model import Model
from bts_dist.model_limits import check_finite
from bts_dist.predict import predict_patient
from shards.config import HoldoutSplit, PackConfig, PhantomConfig, StoreConfig
from shards.encode import Pixels
from shards.errors import InputError
from shards.pack import pack
from shards.parallel import process_map
from shards.phantom import generate
from shards.reader import PackedData, SplitReader
from shards.verify import verify_source

LIMIT = 1e-3
"""Largest difference of probabilities with which an export is published."""
MAX_PATIENTS = 3

Engine = Callable[[Pixels], tuple[NDArray[np.float32], Pixels]]
"""From a volume, uint8 (N, H, W, 3), to probabilities, float32 (N, H, W), and mask, uint8 (N, H, W)."""


class ParityError(RuntimeError):
    """An exported file predicts something else than scoring does."""


@dataclass(frozen=True)
class ParitySlices:
    """The slices that both sides predict."""

    source: SampleSource
    patients: tuple[str, ...]
    description: str
    real: bool
    """Whether they are of a packed data set rather than phantoms."""


@dataclass(frozen=True)
class Parity:
    """How far one exported file is from scoring."""

    max_difference: float
    """Largest absolute difference of probabilities; infinite where one is not finite."""
    differing_pixels: int
    """Pixels whose masks differ."""
    tumour_pixels: int
    """Pixels of scoring's own mask: where there are none, equal masks say little."""
    num_pixels: int


@contextmanager
def parity_slices(config: Config, model: Model) -> Iterator[ParitySlices]:
    """Slices of up to ``MAX_PATIENTS`` validation patients of ``data.shards``, or of phantoms, which it says."""
    try:
        data = PackedData(config.data.shards, config.store)
        reader = data.training("val")
        reason = (
            "" if reader.index.patients() else f"data set {data.manifest.data_id} has no validation patients"
        )
    except InputError:
        reason = "no packed data set could be read"
    if not reason:
        yield from _slices(
            reader, model, f"validation patients of data set {data.manifest.data_id}", real=True
        )
        return
    with tempfile.TemporaryDirectory() as scratch:
        reader = _phantom(Path(scratch), _phantom_side(model.config))
        yield from _slices(reader, model, f"generated phantoms, since {reason}", real=False)


def scored(model: Model, slices: ParitySlices, batch: int) -> dict[str, Probabilities]:
    """What scoring's own path gives in float32: probabilities, float32 (N, H, W), by patient.

    Raises:
        InputError: some are not finite.
    """
    found = {}
    for patient in slices.patients:
        found[patient], _ = predict_patient(
            model.network,
            slices.source,
            patient,
            device=model.device,
            batch=batch,
            precision="fp32",
            mirror=model.inference.mirror,
        )
        check_finite(found[patient], patient)
    return found


def measure(
    model: Model, slices: ParitySlices, engines: Mapping[str, Engine], wanted: Mapping[str, Probabilities]
) -> dict[str, Parity]:
    """Compare each engine with what is ``scored``, on the same volumes.

    Raises:
        ParityError: probabilities of an engine differ by more than ``LIMIT``, or are not finite.
    """
    found = {name: Parity(0.0, 0, 0, 0) for name in engines}
    for patient, probability in wanted.items():
        volume = read_volume(slices.source.reader, patient)
        for name, engine in engines.items():
            now = _compare(probability, probability > model.inference.threshold, *engine(volume))
            found[name] = _worse(found[name], now)
    refused = [name for name, parity in found.items() if parity.max_difference > LIMIT]
    if refused:
        worst = found[refused[0]].max_difference
        raise ParityError(
            f"{', '.join(refused)} differs from scoring by up to {worst:.2g} in probability, on "
            f"{slices.description}; at most {LIMIT:g} is allowed, so nothing was written. Compare the versions of "
            "torch, onnx and onnxruntime with constraints.txt"
        )
    return found


def read_volume(reader: SplitReader, patient: str) -> Pixels:
    """A patient's slices in order, uint8 (N, H, W, 3), at native size."""
    return np.stack([reader.read(int(sample))[0] for sample in reader.index.samples_of(patient)])


def _slices(reader: SplitReader, model: Model, of: str, *, real: bool) -> Iterator[ParitySlices]:
    index, size = reader.index, model.config.data.image_size
    step = 2 ** (model.config.model.depth - 1)
    if size is None and any(side % step for side in reader.native_size):
        raise InputError(
            f"slices of {reader.native_size[0]} × {reader.native_size[1]} pixels do not divide by {step}, which "
            "this model needs; name the data set it was trained on with --set data.shards=…"
        )
    ranked = sorted(index.patients(), key=lambda patient: (len(index.samples_of(patient)), patient))
    # From few slices to many: the number of slices is free in what is exported.
    places = np.linspace(0, len(ranked) - 1, min(MAX_PATIENTS, len(ranked))).round().astype(int)
    patients = tuple(ranked[place] for place in places)
    num = sum(len(index.samples_of(patient)) for patient in patients)
    source = SampleSource(reader, model.config.data.model_copy(update={"cache": "none"}))
    try:
        yield ParitySlices(source, patients, f"{num} slices of {len(patients)} {of}", real)
    finally:
        source.close()


def _phantom(folder: Path, side: int) -> SplitReader:
    phantom = PhantomConfig(patients=3, size=side, min_slices=3, max_slices=5, seed=1)
    source, shards, store = folder / "source", folder / "shards", StoreConfig()
    generate(phantom, source, workers=1)
    pack(
        verify_source(str(source), store, 1),
        str(shards),
        source=str(source),
        split=HoldoutSplit(),
        config=PackConfig(workers=1),
        store=store,
        parallel=process_map(1),
    )
    return PackedData(str(shards), store).training("val")


def _phantom_side(config: Config) -> int:
    step: int = 2 ** (config.model.depth - 1)
    wanted: int = config.data.image_size or config.phantom.size
    return -(-wanted // step) * step


def _compare(
    probability: NDArray[np.float32], mask: NDArray[np.bool_], theirs: NDArray[np.float32], their_mask: Pixels
) -> Parity:
    if theirs.shape != probability.shape or their_mask.shape != mask.shape:
        raise ParityError(f"an exported model gives {theirs.shape} for slices of {probability.shape}")
    difference = float(np.abs(probability - theirs).max())
    wrong = int(np.count_nonzero(mask != (their_mask > 0)))
    largest = difference if np.isfinite(difference) else float("inf")
    return Parity(largest, wrong, int(mask.sum()), mask.size)


def _worse(one: Parity, other: Parity) -> Parity:
    return Parity(
        max(one.max_difference, other.max_difference),
        one.differing_pixels + other.differing_pixels,
        one.tumour_pixels + other.tumour_pixels,
        one.num_pixels + other.num_pixels,
    )
