"""A head, drawn: tissues painted one over another, with soft edges (partial volume), in three sequences."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Field = NDArray[np.floating[Any]]
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


def place_head(rng: np.random.Generator, num_slices: int, size: int) -> Scene:
    """An unpainted head of its own size, somewhat off the centre, tilted and bent, in slices of ``size`` pixels."""
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


def paint_skull(scene: Scene, fat: float) -> Field:
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


def paint_brain(scene: Scene, inside: Field) -> Anatomy:
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
