"""Patients' scores made up for tests of what is computed from them."""

import numpy as np
from hypothesis import strategies as st

from bts_dist.config import ScoreConfig
from bts_dist.patients import PatientScore
from bts_dist.surface import SurfaceScores

voxels = st.integers(0, 500)
distances = st.none() | st.floats(0, 300)
shares = st.floats(0, 1)


def settings_of(resamples: int, seed: int = 0) -> ScoreConfig:
    return ScoreConfig(bootstrap=resamples, seed=seed)


def score(
    patient: str,
    *counts: tuple[int, int, int],
    hd95: float | None = 1.0,
    surface_dice: float = 0.5,
    asd: float | None = 0.7,
    lesions: tuple[int, int, int] = (1, 0, 0),
    **rest: object,
) -> PatientScore:
    """A patient of slices with 2,000 pixels each."""
    return PatientScore(
        patient,
        str(rest.pop("institution", "CS")),
        np.array(counts, dtype=np.int64),
        slice_pixels=2_000,
        lesions=np.array(lesions, dtype=np.int64),
        px=SurfaceScores(hd95, asd, surface_dice),
        **rest,  # type: ignore[arg-type]
    )


@st.composite
def cohorts(draw: st.DrawFn, min_size: int = 1) -> list[PatientScore]:
    slices = st.lists(st.tuples(voxels, voxels, voxels) | st.just((0, 0, 0)), min_size=1, max_size=4)
    few = st.integers(0, 3)
    return [
        score(
            f"P{index}",
            *counts,
            hd95=draw(distances),
            surface_dice=draw(shares),
            asd=draw(distances),
            lesions=draw(st.tuples(few, few, few)),
            institution=draw(st.sampled_from(["CS", "DU", "HT"])),
            missing=draw(st.sampled_from([(), ("post",), ("pre", "post")])),
        )
        for index, counts in enumerate(draw(st.lists(slices, min_size=min_size, max_size=6)))
    ]


def cohort(size: int = 12) -> list[PatientScore]:
    rng = np.random.default_rng(7)
    return [
        score(f"P{index:02d}", *map(tuple, rng.integers(0, 60, (5, 3)).tolist()), hd95=float(rng.gamma(2, 3)))
        for index in range(size)
    ]
