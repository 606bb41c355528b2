"""Which way of predicting is best on the validation patients: one choice after another, each with what it gains.

The ways are the cells of a table with an axis for each choice.  Integer counts of every patient fill it once, and
all that is decided afterwards is arithmetic on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bts_dist import counts as of
from bts_dist.components import OPTIONS, Keep, count_components
from bts_dist.config import ScoreConfig
from bts_dist.counts import Counts, Mask
from bts_dist.estimates import Draws, interval
from bts_dist.inference import Inference
from bts_dist.subgroups import FEWEST
from bts_dist.validate import THRESHOLDS

LEAST_GAIN = 0.001
"""An average over more predictions, or a rule that throws voxels away, has to gain so much in ``dice/patient``."""


@dataclass(frozen=True)
class Axes:
    """The values of each choice in order of preference, the first being where it starts.

    Where nothing is to be chosen there is one value.
    """

    mirror: tuple[bool, ...]
    ensemble: tuple[int, ...]
    """How many checkpoints are averaged, the best one first."""
    threshold: tuple[float, ...]
    components: tuple[Keep, ...]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.mirror), len(self.ensemble), len(self.threshold), len(self.components)


def make_axes(settings: ScoreConfig, num_members: int, threshold: float) -> Axes:
    """The ways to be tried; ``threshold`` is the one that training chose, kept where none is to be chosen here."""
    wanted = settings.choices
    by_nearness = tuple(sorted(THRESHOLDS, key=lambda t: (round(abs(t - 0.5), 12), t)))
    return Axes(
        (False, True) if "mirror" in wanted else (settings.mirror,),
        tuple(range(1, num_members + 1)) if "ensemble" in wanted else (1,),
        by_nearness if "threshold" in wanted else (threshold,),
        OPTIONS if "components" in wanted else ("all",),
    )


def count_ways(logits: Sequence[Tensor], truth_NHW: Mask, axes: Axes) -> Counts:
    """Counts of one whole patient in every way, int64 (mirror, ensemble, threshold, components, 3).

    Args:
        logits: of each checkpoint the logits, float32 (1 or 2, slices, H, W), as ``patient_logits`` gives them.
        truth_NHW: the true mask.
        axes: the ways.
    """
    found = np.zeros((*axes.shape, 3), dtype=np.int64)
    total: Tensor = torch.zeros_like(logits[0])
    for member, own in enumerate(logits, start=1):
        total = total + own
        if member not in axes.ensemble:
            continue
        straight, *flipped = (total / member).sigmoid()
        for m, mirror in enumerate(axes.mirror):
            probability = ((straight + flipped[0]) / 2 if mirror else straight).numpy()
            for t, threshold in enumerate(axes.threshold):
                cell = (m, axes.ensemble.index(member), t)
                found[cell] = count_components(probability > threshold, truth_NHW, axes.components)
    return found


def decide(counts: Sequence[Counts], axes: Axes, draws: Draws) -> tuple[Inference, dict[str, Any], int]:
    """Choose along one axis after another; the way found, what was tried in plain values, and the number of members.

    A threshold is taken for any gain.  What costs time or throws voxels away is taken from ``LEAST_GAIN`` on.

    Args:
        counts: of each patient, as ``count_ways``.
        axes: the ways.
        draws: resamples of the patients, for the intervals of the gains.
    """
    dice = of.dice(np.stack(counts))
    at = [0, 0, 0, 0]
    start = float(dice[_cells(at)].mean())
    rows = []
    for axis, (name, values) in enumerate(vars(axes).items()):
        if len(values) == 1:
            continue
        along = dice[_cells(at, axis)]
        least = 0.0 if name == "threshold" else LEAST_GAIN
        row, at[axis] = _choose(name, values, along, at[axis], least, draws)
        rows.append(row)
    way = [values[place] for values, place in zip(vars(axes).values(), at, strict=True)]
    tried = {
        "patients": len(counts),
        "start": {"label": _start_label(axes), "dice/patient": start},
        "rows": rows,
        "dice/patient": float(dice[_cells(at)].mean()),
    }
    return Inference(threshold=way[2], mirror=way[0], keep=way[3]), tried, way[1]


def _cells(at: Sequence[int], free: int | None = None) -> tuple[Any, ...]:
    """Where the Dice of all patients in one way stands; in every way along the axis ``free``."""
    return slice(None), *(slice(None) if axis == free else place for axis, place in enumerate(at))


def _choose(
    name: str,
    values: Sequence[Any],
    along: NDArray[np.float64],
    now: int,
    least: float,
    draws: Draws,
) -> tuple[dict[str, Any], int]:
    """One row, and the place of the value that holds from here on.  ``along`` is Dice, (patients, values)."""
    means = along.mean(axis=0)
    others = [place for place in range(len(values)) if place != now]
    # Sums of the same numbers in another order differ in the last bits: equal to 1e-12 is equal, and earlier wins.
    best = next(place for place in others if means[place] >= means[others].max() - 1e-12)
    gain = float(means[best] - means[now])
    low, high = None, None
    if len(along) >= FEWEST:
        low, high = interval(draws @ (along[:, best] - along[:, now]) / len(along))
    taken = gain > max(least - 1e-12, 1e-12)
    row = {
        "choice": name,
        "from": _label(name, values[now]),
        "to": _label(name, values[best]),
        "dice/patient": float(means[best]),
        "gain": gain,
        "low": low,
        "high": high,
        "taken": taken,
        "tried": {_label(name, value): float(mean) for value, mean in zip(values, means, strict=True)},
    }
    return row, best if taken else now


def _label(name: str, value: Any) -> str:
    match name:
        case "mirror":
            return "mirrored" if value else "not mirrored"
        case "ensemble":
            return "one checkpoint" if value == 1 else f"{value} checkpoints"
        case "threshold":
            return f"{value:g}"
        case _:
            return f"{value} voxels or more" if isinstance(value, int) else str(value)


def _start_label(axes: Axes) -> str:
    return ", ".join(
        f"threshold {_label(name, values[0])}" if name == "threshold" else _label(name, values[0])
        for name, values in vars(axes).items()
        if name != "components"
    )
