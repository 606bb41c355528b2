"""A generated data set in Kaggle's layout: brain-like volumes with tumours whose outline is known.

It lets everything run where no patient data may go.  It is drawn, not simulated: tissues are painted one over
another with soft edges (partial volume), then imaged by one of four made-up scanners.  It is hard on purpose:
tumours that fade out, bright spots that are no tumour, outlines as unsteady as a human reader's.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft, ndimage

from shards.config import PhantomConfig
from shards.errors import InputError

Field = NDArray[np.floating[Any]]
Pixels = NDArray[np.uint8]
Triple = tuple[float, float, float]

PRE, FLAIR, POST = 0, 1, 2

# Brightness in pre-contrast T1, FLAIR and post-contrast T1; 1 is white matter in T1.
AIR: Triple = (0.00, 0.00, 0.00)
FAT: Triple = (2.00, 1.90, 1.85)
BONE: Triple = (0.16, 0.14, 0.17)
MUSCLE: Triple = (0.62, 0.50, 0.75)
FLUID: Triple = (0.34, 0.25, 0.36)
GREY: Triple = (0.74, 1.02, 0.80)
WHITE: Triple = (1.00, 0.84, 1.00)
VESSEL: Triple = (0.60, 0.40, 1.90)

# Centre and half-axes of the right caudate nucleus, putamen and thalamus.
_NUCLEI: tuple[tuple[Triple, Triple], ...] = (
    ((0.17, -0.26, 0.18), (0.07, 0.13, 0.12)),
    ((0.34, -0.08, 0.08), (0.07, 0.20, 0.12)),
    ((0.13, 0.16, 0.10), (0.10, 0.14, 0.11)),
)

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


@dataclass(frozen=True)
class Scene:
    """A head's own coordinates at every voxel, and the brightness painted so far.

    Lengths are in half-lengths of the head.  A field is about the distance below a surface: positive inside.
    """

    rng: np.random.Generator
    u: Field
    """Left to right (N, H, W): the midline is 0, the skin about ±1."""
    v: Field
    """Front (-1) to back (1)."""
    w: Field
    """Below the skull's base (-0.6) to the vertex (1)."""
    steps: Triple
    """Distance of slices, of rows and of columns."""
    signal: Field
    """Brightness of each sequence (3, N, H, W)."""

    def noise(self, scale: float) -> Field:
        """Smooth noise of standard deviation 1 with bumps about ``scale`` wide."""
        return _smooth_noise(self.rng, self.u.shape, self.steps, scale)

    def ball(self, centre: Triple, axes: Triple) -> Field:
        """Field of an ellipsoid."""
        return (1 - self.radius(centre, axes)) * min(axes)

    def radius(self, centre: Triple, axes: Triple) -> Field:
        """Distance from a point in units of the half-axes."""
        u, v, w = ((a - c) / s for a, c, s in zip((self.u, self.v, self.w), centre, axes, strict=True))
        radius: Field = np.sqrt(u**2 + v**2 + w**2)
        return radius

    def cover(self, field: Field) -> Field:
        """How much of each voxel lies inside, 0 to 1."""
        cover: Field = np.clip(field / self.steps[1] + 0.5, 0, 1)
        return cover

    def paint(self, levels: Triple, field: Field, opacity: float = 1) -> None:
        self.blend(levels, opacity * self.cover(field))

    def blend(self, levels: Triple, cover: Field) -> None:
        for sequence, level in zip(self.signal, levels, strict=True):
            sequence += cover * (level - sequence)

    def point(self, where: NDArray[np.bool_]) -> Triple:
        """A random voxel of those that are true; of all, when none is."""
        candidates = np.flatnonzero(where) if where.any() else np.arange(where.size)
        index = int(self.rng.choice(candidates))
        return float(self.u.flat[index]), float(self.v.flat[index]), float(self.w.flat[index])


@dataclass(frozen=True)
class Anatomy:
    """Fields that tumours and bright spots heed (N, H, W)."""

    brain: Field
    """The hemispheres without their fluid."""
    white: Field
    ventricle: Field
    midline: Field
    """Signed distance from the plane between the hemispheres."""


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
    for done, _ in enumerate(_run(work, tasks, workers or os.cpu_count() or 1), start=1):
        if progress is not None:
            progress(done, config.patients)
    unfinished.replace(dest)


def render(config: PhantomConfig, index: int) -> tuple[Pixels, Pixels]:
    """Draw one patient: image uint8 (N, H, W, 3) and mask uint8 (N, H, W) of 0 and 1."""
    rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(index,)))
    scanner = SCANNERS[index % len(SCANNERS)]
    scene = _place_head(rng, int(rng.integers(config.min_slices, config.max_slices + 1)), config.size)
    inside = _paint_skull(scene, scanner.fat)
    anatomy = _paint_brain(scene, inside)
    _paint_bright_spots(scene, anatomy)
    mask = np.zeros(scene.u.shape, bool)
    for _ in range(1 + int(rng.random() < 0.15)):
        mask |= _paint_tumour(scene, anatomy)
    return _acquire(scene, scanner), mask.astype(np.uint8)


def _place_head(rng: np.random.Generator, num_slices: int, size: int) -> Scene:
    """A head of its own size, somewhat off the centre, tilted and bent."""
    half_length = rng.uniform(0.70, 0.93)
    half_width = half_length * rng.uniform(0.76, 0.84)
    angle = np.deg2rad(rng.normal(0, 4))
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = axis[None, :] - rng.uniform(-0.06, 0.06), axis[:, None] - rng.uniform(-0.06, 0.06)
    heights = np.linspace(-0.62, rng.uniform(0.99, 1.06), num_slices)
    steps = (float(heights[1] - heights[0]), 2 / size / half_length, 2 / size / half_length)
    shape = (num_slices, size, size)
    u = (np.cos(angle) * x + np.sin(angle) * y) / half_width + 0.022 * _smooth_noise(rng, shape, steps, 0.7)
    v = (np.cos(angle) * y - np.sin(angle) * x) / half_length + 0.022 * _smooth_noise(rng, shape, steps, 0.7)
    w = np.broadcast_to(heights[:, None, None], shape)
    signal = np.zeros((3, *shape), np.float32)
    return Scene(rng, u.astype(np.float32), v.astype(np.float32), w.astype(np.float32), steps, signal)


def _paint_skull(scene: Scene, fat: float) -> Field:
    """Paint scalp, skull and face; return the field of what is inside the skull, filled with fluid."""
    rng, u, v, w = scene.rng, scene.u, scene.v, scene.w
    below = np.maximum(-w, 0)
    skin = (np.abs(u) ** 2.3 + np.abs(v) ** 2.2 + np.maximum(w, 0) ** 2.3) ** (1 / 2.25)
    depth = 1 - skin - 0.25 * below * np.maximum(v, 0) + 0.01 * scene.noise(0.45)
    scalp = rng.uniform(0.05, 0.10) * (1 + 0.15 * scene.noise(0.5)) + 0.1 * below
    skull = rng.uniform(0.05, 0.08) * (1 + 0.15 * scene.noise(0.5))
    fatty = (FAT[0] * fat, FAT[1] * fat, FAT[2] * fat)
    nose = scene.ball((0, -0.98, -0.42), (0.16, 0.2, 0.3))
    scene.paint(fatty, np.maximum(depth, nose))
    temples = np.minimum(np.abs(u) - 0.7, 0.25 - w)
    scene.paint(MUSCLE, np.minimum(depth - 0.4 * scalp, temples))
    scene.paint(BONE, depth - scalp)
    scene.paint(fatty, np.minimum(depth - scalp - 0.3 * skull, scalp + 0.7 * skull - depth), 0.35)  # marrow

    # Below the brain the face takes the front, and the temporal lobes reach forward on both sides of it.
    front = np.interp(w, (-0.62, -0.45, -0.25, -0.08, 0.02), (0.25, 0.05, -0.30, -0.75, -1.40))
    width = np.interp(w, (-0.62, -0.40, -0.15), (0.45, 0.72, 1.50))
    lobes = 0.4 * np.exp(-(((np.abs(u) - 0.48) / 0.2) ** 2)) * np.clip((0.05 - w) / 0.2, 0, 1)
    base = np.minimum(0.7 * (v - front + lobes), width - np.abs(u))
    inside: Field = np.minimum(depth - scalp - skull, base) + 0.012 * scene.noise(0.2)
    _paint_face(scene, np.minimum(np.minimum(depth - 0.8 * scalp, -inside - 0.05), -0.02 - w), fatty)
    scene.paint(FLUID, inside)
    return inside


def _paint_face(scene: Scene, face: Field, fatty: Triple) -> None:
    """Patches of muscle, fat and air, the nasal cavity, and two eyes in bright orbits."""
    patches = scene.noise(0.07)
    scene.paint(MUSCLE, face)
    scene.paint(fatty, np.minimum(face, 0.06 * (patches - 0.5)), 0.7)
    scene.paint(AIR, np.minimum(face, 0.06 * (-0.6 - patches)))
    scene.paint(AIR, np.minimum(face, scene.ball((0, -0.55, -0.3), (0.16, 0.34, 0.3)) + 0.03 * patches))
    for side in (-1, 1):
        scene.paint(fatty, scene.ball((0.38 * side, -0.66, -0.22), (0.24, 0.34, 0.16)))
        scene.paint(FLUID, scene.ball((0.40 * side, -0.74, -0.22), (0.17, 0.15, 0.14)))


def _paint_brain(scene: Scene, inside: Field) -> Anatomy:
    """Paint the hemispheres, deep nuclei, cerebellum, brain stem, ventricles and vessels."""
    u, v, w = scene.u, scene.v, scene.w
    atrophy = scene.rng.uniform(0.015, 0.05)
    depth = inside - atrophy
    midline = u + 0.02 * scene.noise(0.3)
    folds = scene.noise(0.055)
    crease = 0.06 * np.abs(folds)  # The folds' zero lines wind like sulci.
    ribbon = 0.07 * (1 + 0.5 * scene.noise(0.1)) - depth
    gyri = np.minimum(0.055 - crease, 0.27 - depth)
    sulci = np.minimum(0.016 + 0.25 * atrophy - crease, 0.2 * (1 + 0.4 * scene.noise(0.12)) - depth)
    falx = np.minimum(0.008 + 0.2 * atrophy - np.abs(midline), np.maximum(np.abs(v) - 0.42, w - 0.42))

    scene.paint(WHITE, depth)
    scene.paint(GREY, np.minimum(np.maximum(np.maximum(ribbon, gyri), falx + 0.04), depth))
    for side in (-1, 1):
        for (x, y, z), axes in _NUCLEI:
            scene.paint(GREY, scene.ball((side * x, y, z), axes) + 0.01 * folds, 0.8)
        sylvian = scene.ball((side * 0.66, -0.1, 0.05), (0.16, 0.045, 0.22)) + 0.015 * folds
        sulci = np.maximum(sulci, np.minimum(sylvian, 0.4 - depth))
    scene.paint(FLUID, np.minimum(np.maximum(sulci, falx), depth), 0.75)

    cerebellum = np.minimum(np.minimum(-0.1 - w + 0.3 * (v - 0.3), v - 0.12), depth)
    scene.paint(GREY, cerebellum)
    scene.paint(WHITE, np.minimum(cerebellum - 0.12, 0.03 * folds + 0.05), 0.8)
    folia = np.sin(60 * (v + 0.35 * np.abs(u)) + 2 * folds)
    scene.paint(FLUID, np.minimum(cerebellum, 0.02 * (folia - 0.5)), 0.3)
    scene.paint(FLUID, np.minimum(scene.ball((0, 0, -0.35), (0.27, 0.25, 0.28)) + 0.02 * folds, inside))
    scene.paint(WHITE, np.minimum(scene.ball((0, 0.05, -0.4), (0.2, 0.2, 0.5)), inside))  # brain stem
    scene.signal[:] *= 1 + 0.035 * scene.noise(0.035) * scene.cover(depth)

    ventricle = _ventricles(scene, midline)
    scene.paint(FLUID, ventricle)
    plexus = np.minimum(0.05 * (folds - 0.2), 0.1 - np.abs(v - 0.27))
    scene.paint(VESSEL, np.minimum(ventricle, plexus), 0.7)
    sagittal_sinus = np.minimum(0.03 - np.abs(inside), np.maximum(v, w - 0.5))
    scene.paint(VESSEL, np.minimum(0.05 - np.abs(u), sagittal_sinus), 0.8)
    brain = np.minimum(np.minimum(depth, -sulci), np.minimum(-cerebellum, -ventricle))
    return Anatomy(brain, -np.maximum(ribbon, gyri), ventricle, midline)


def _ventricles(scene: Scene, midline: Field) -> Field:
    """The third ventricle and, of uneven size, two lateral ones whose horns spread outwards."""
    size = scene.rng.uniform(0.7, 1.5)
    third = scene.ball((0, 0.05, 0.02), (0.025 * size, 0.16, 0.12))
    field = third
    for side in (-1, 1):
        s = size * scene.rng.uniform(0.85, 1.2)
        outwards = side * (0.085 + 0.7 * (scene.v - 0.02) ** 2)
        straight = Scene(scene.rng, scene.u - outwards, scene.v, scene.w, scene.steps, scene.signal)
        field = np.maximum(field, straight.ball((0, 0.02, 0.22), (0.07 * s, 0.38 * s**0.3, 0.15 * s**0.5)))
    field = field + 0.008 * scene.noise(0.08)
    septum = np.maximum(np.abs(midline) - 0.012, third)
    field = np.minimum(field, septum)
    return field


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


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], steps: Triple, scale: float) -> Field:
    """White noise through a Gaussian filter in Fourier space, at standard deviation 1."""
    spectrum = fft.rfftn(rng.standard_normal(shape, np.float32))
    spectrum[0, 0, 0] = 0
    for axis, step in enumerate(steps):
        frequency = fft.rfftfreq(shape[axis]) if axis == 2 else fft.fftfreq(shape[axis])
        falloff = np.exp(-2 * (np.pi * frequency * scale / 2 / step) ** 2).astype(np.float32)
        spectrum *= falloff.reshape([-1 if a == axis else 1 for a in range(3)])
    noise: Field = fft.irfftn(spectrum, shape)
    noise /= max(noise.std(), 1e-9)
    return noise


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


def _run(
    work: Callable[[tuple[int, tuple[int, ...]]], None],
    tasks: Sequence[tuple[int, tuple[int, ...]]],
    workers: int,
) -> Iterator[None]:
    if min(workers, len(tasks)) == 1:
        yield from map(work, tasks)
        return
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=get_context("spawn")) as pool:
        yield from pool.map(work, tasks)
