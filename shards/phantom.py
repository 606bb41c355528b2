"""A generated data set in Kaggle's layout: brain-like volumes with tumours whose outline is known.

It lets everything run where no patient data may go.  It is drawn, not simulated: tissues are painted one over
another with soft edges (partial volume), then imaged by one of four made-up scanners.  It is hard on purpose:
tumours that fade out, bright spots that are no tumour, outlines as unsteady as a human reader's.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from shards.anatomy import (
    FLAIR,
    FLUID,
    POST,
    PRE,
    Anatomy,
    Field,
    Scene,
    Triple,
    paint_brain,
    paint_skull,
    place_head,
)
from shards.config import PhantomConfig
from shards.errors import InputError
from shards.parallel import process_map

Pixels = NDArray[np.uint8]

# What a patient may lack: post-contrast or both, about as often as in the TCGA set, and rarely pre-contrast.
_LACKED = ((POST,), (POST,), (PRE, POST), (PRE, POST), (PRE,))


@dataclass(frozen=True)
class Scanner:
    """How one made-up institution images."""

    institution: str
    gain: Triple
    """Grey level of brightness 1 in each sequence."""
    fat: float
    """Factor on the brightness of fat."""
    contrast: float
    """Exponent on brightness: below 1 it flattens grey against white matter."""
    shading: float
    """Standard deviation of the logarithm of the smooth bias field."""
    blur: float
    """Standard deviation of the point spread, as a share of the side."""
    noise: float
    """Standard deviation of the complex noise's parts, in grey levels."""
    air: Triple
    """Grey level of air in each sequence."""


SCANNERS = (
    Scanner("AX", (72, 74, 76), 1.00, 1.00, 0.18, 0.0035, 2.2, (0, 0, 0)),
    Scanner("BK", (58, 66, 54), 1.30, 0.80, 0.30, 0.0047, 3.5, (1, 4, 1)),
    Scanner("CN", (92, 60, 96), 0.75, 1.15, 0.22, 0.0027, 2.8, (2, 1, 2)),
    Scanner("DW", (50, 84, 62), 1.05, 0.90, 0.35, 0.0059, 1.6, (22, 2, 1)),
)


def generate(
    config: PhantomConfig,
    dest: Path,
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> None:
    """Write the data set to ``dest``: the same bytes for the same config, whatever the number of workers.

    It is written beside ``dest`` and renamed when it is whole.  ``progress`` gets the patients done and all;
    ``workers`` is the number of processes, by default one for each CPU.

    Raises:
        InputError: ``dest`` holds something already, or cannot be written.
    """
    if dest.exists() and not (dest.is_dir() and not any(dest.iterdir())):
        raise InputError(f"{dest} exists and is not an empty folder; delete it or choose another one")
    dest = dest.resolve()
    unfinished = dest.with_name(f"{dest.name}.partial")
    try:
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{unfinished}: cannot be created ({error}); choose another folder") from error
    lacked = _lacked_sequences(config)
    tasks = [(index, lacked.get(index, ())) for index in range(config.patients)]
    work = partial(_write_patient, config, unfinished)
    for done, _ in enumerate(process_map(workers)(work, tasks), start=1):
        if progress is not None:
            progress(done, config.patients)
    unfinished.replace(dest)


def render(config: PhantomConfig, index: int) -> tuple[Pixels, Pixels]:
    """Draw one patient: image uint8 (N, H, W, 3) and mask uint8 (N, H, W) of 0 and 1."""
    rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(index,)))
    scanner = SCANNERS[index % len(SCANNERS)]
    scene = place_head(rng, int(rng.integers(config.min_slices, config.max_slices + 1)), config.size)
    inside = paint_skull(scene, scanner.fat)
    anatomy = paint_brain(scene, inside)
    _paint_bright_spots(scene, anatomy)
    mask = np.zeros(scene.u.shape, bool)
    for _ in range(1 + int(rng.random() < 0.15)):
        mask |= _paint_tumour(scene, anatomy)
    return _acquire(scene, scanner), mask.astype(np.uint8)


def _paint_bright_spots(scene: Scene, anatomy: Anatomy) -> None:
    """FLAIR-bright things that are no tumour: caps of the ventricles, and spots in white matter."""
    rng = scene.rng
    away = np.maximum(-anatomy.ventricle, 0)
    shell = np.exp(-((away / 0.05) ** 2)) * np.clip(2.5 * np.abs(scene.v), 0.2, 1)
    caps = shell * (anatomy.ventricle < 0) * (anatomy.brain > 0)
    scene.signal[FLAIR] *= 1 + rng.uniform(0.05, 0.55) * caps * np.clip(
        0.7 + 0.5 * scene.noise(0.06), 0, None
    )
    for _ in range(int(rng.integers(0, 10))):
        centre = scene.point((anatomy.white > 0) & (anatomy.brain > 0.1))
        size = rng.uniform(0.02, 0.055)
        spot = scene.ball(centre, (size, size * rng.uniform(0.7, 1.6), max(size, 0.7 * scene.steps[0])))
        cover = scene.cover(np.minimum(spot, anatomy.brain))
        scene.signal[FLAIR] *= 1 + rng.uniform(0.2, 0.8) * cover
        scene.signal[PRE] *= 1 - rng.uniform(0.0, 0.2) * cover


def _paint_tumour(scene: Scene, anatomy: Anatomy) -> NDArray[np.bool_]:
    """Paint a tumour, bright in FLAIR, dark in T1, some with a cyst or enhancing rim; return its mask."""
    rng = scene.rng
    field = _tumour_field(scene, anatomy)
    softness = rng.uniform(0.08, 0.35)
    cover = np.clip(0.5 + field / softness, 0, 1) * scene.cover(anatomy.brain)
    uneven = cover * np.clip(1 + 0.25 * scene.noise(0.06), 0.2, 1.8)
    scene.signal[FLAIR] *= 1 + rng.uniform(0.2, 1.1) * uneven
    scene.signal[[PRE, POST]] *= 1 - rng.uniform(0.08, 0.38) * uneven
    if rng.random() < 0.3:
        scene.blend(FLUID, 0.85 * np.clip((field - 0.45) / 0.15, 0, 1) * (cover > 0.9))
    if rng.random() < 0.45:
        rim = np.exp(-(((field - rng.uniform(0.25, 0.5)) / 0.1) ** 2)) * cover
        scene.signal[POST] *= 1 + rng.uniform(0.5, 1.4) * rim * np.clip(scene.noise(0.09) - 0.1, 0, 1)
    return _outlined(scene, (field + 0.06 * scene.noise(0.12) > 0) & (anatomy.brain > 0))


def _tumour_field(scene: Scene, anatomy: Anatomy) -> Field:
    """About 1 at a tumour's centre and 0 at its border: an ellipsoid whose surface is pushed in and out."""
    rng = scene.rng
    centre = scene.point((anatomy.brain > 0.06) & (np.abs(anatomy.midline) > 0.12))
    size = 0.15 + 0.46 * rng.beta(1.2, 1.6)
    axes = size * np.exp(rng.normal((0, 0, -0.2), 0.2))
    radius = scene.radius(centre, (axes[0], axes[1], axes[2]))
    push = np.clip(0.3 * scene.noise(0.6 * size) + 0.1 * scene.noise(0.25 * size), -0.5, 0.7)
    field: Field = 1 - radius + push * np.minimum(radius, 1)
    across = np.maximum(-np.sign(centre[0]) * anatomy.midline - 0.01, 0)
    # Gliomas spread along white matter more than through cortex, and hardly across the falx.
    field -= 0.25 * scene.cover(-anatomy.white) + 4 * across
    return field


def _outlined(scene: Scene, region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The region as a reader draws it, without islands and inlets finer than a pen."""
    pen_px = 0.025 / scene.steps[1]
    drawn: NDArray[np.bool_] = ndimage.gaussian_filter(region.astype(np.float32), (0, pen_px, pen_px)) > 0.5
    return drawn if drawn.any() else region


def _acquire(scene: Scene, scanner: Scanner) -> Pixels:
    """Image the scene: point spread, bias field, Rician noise (Gudbjartsson & Patz 1995), grey levels."""
    rng = scene.rng
    bias = np.exp(rng.uniform(0.3, 1) * scanner.shading * scene.noise(1.0))
    sequences = []
    for signal, gain, air in zip(scene.signal, scanner.gain, scanner.air, strict=True):
        blur_px = scanner.blur * signal.shape[-1] * rng.uniform(0.8, 1.3)
        blurred = ndimage.gaussian_filter(signal, (0.35, blur_px, blur_px))
        clean = gain * rng.uniform(0.8, 1.2) * bias * blurred**scanner.contrast
        real, imaginary = scanner.noise * rng.standard_normal((2, *signal.shape), np.float32)
        sequences.append(air + np.hypot(clean + real, imaginary))
    image_NHWC: Pixels = np.clip(np.rint(np.stack(sequences, axis=-1)), 0, 255).astype(np.uint8)
    return image_NHWC


def _lacked_sequences(config: PhantomConfig) -> dict[int, tuple[int, ...]]:
    """The patients, by index, who lack sequences, and which."""
    rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(0, 0)))
    chosen = rng.permutation(config.patients)[: round(config.missing * config.patients)]
    return {int(index): _LACKED[int(rng.integers(len(_LACKED)))] for index in chosen}


def _write_patient(config: PhantomConfig, dest: Path, task: tuple[int, tuple[int, ...]]) -> None:
    index, lacked = task
    image_NHWC, mask_NHW = render(config, index)
    for channel in lacked:
        image_NHWC[..., channel] = image_NHWC[..., FLAIR]
    name = f"PHANTOM_{SCANNERS[index % len(SCANNERS)].institution}_{index + 1:04d}_20000101"
    folder = dest / name
    folder.mkdir()
    for number, (image, mask) in enumerate(zip(image_NHWC, mask_NHW, strict=True), start=1):
        Image.fromarray(image).save(folder / f"{name}_{number}.tif", "TIFF")
        Image.fromarray(mask * np.uint8(255)).save(folder / f"{name}_{number}_mask.tif", "TIFF")
