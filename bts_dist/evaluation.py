"""All that is measured of one patient's probabilities, and of all patients together."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bts_dist import calibration, thresholds
from bts_dist.calibration import Probabilities
from bts_dist.config import ScoreConfig
from bts_dist.counts import Counts, Mask, count
from bts_dist.estimates import draw
from bts_dist.lesions import count_lesions
from bts_dist.metrics import summarise, to_json
from bts_dist.patients import PatientScore
from bts_dist.subgroups import subgroups
from bts_dist.surface import find_surfaces, surface_scores
from shards.meta import Facts


@dataclass(frozen=True, eq=False)  # == on the arrays would be elementwise
class Evaluation:
    """One patient's part of a score: whole numbers that add up, and figures that are this patient's alone.

    So it does not matter which worker evaluates whom.
    """

    score: PatientScore
    at_thresholds: Counts
    """Whole-patient counts at each threshold of ``thresholds.CURVE``, int64 (T, 3)."""
    bins: dict[str, Counts]
    """Sums for the calibration of each region, int64 (BINS, 4)."""


def evaluate(
    patient: str,
    institution: str,
    facts: Facts,
    probability_NHW: Probabilities,
    prediction_NHW: Mask,
    truth_NHW: Mask,
    settings: ScoreConfig,
) -> Evaluation:
    """Evaluate one patient's probabilities, float32 (slices, H, W), and the mask made of them against the truth.

    Both masks are bool of the same shape.
    """
    surfaces = find_surfaces(prediction_NHW, truth_NHW)
    spacing = facts.spacing_mm
    score = PatientScore(
        patient,
        institution,
        count(prediction_NHW, truth_NHW),
        slice_pixels=truth_NHW[0].size,
        lesions=count_lesions(prediction_NHW, truth_NHW),
        px=surface_scores(surfaces, tolerance=settings.tolerance_px),
        mm=None if spacing is None else surface_scores(surfaces, spacing, settings.tolerance_mm),
        spacing_mm=spacing,
        missing=facts.missing,
    )
    near = calibration.near(prediction_NHW, truth_NHW)
    return Evaluation(
        score,
        thresholds.count_at(probability_NHW, truth_NHW, thresholds.CURVE),
        {
            "all": calibration.count_by_bin(probability_NHW, truth_NHW),
            "near": calibration.count_by_bin(probability_NHW[near], truth_NHW[near]),
        },
    )


def result(evaluations: Sequence[Evaluation], settings: ScoreConfig) -> dict[str, Any]:
    """What ``score.json`` says of all patients, in plain values, whatever the order they come in.

    Keys are ``metrics``, ``patients``, ``subgroups``, ``calibration`` and ``thresholds``.

    Raises:
        ValueError: as ``summarise``.
    """
    ordered = sorted(evaluations, key=lambda evaluation: evaluation.score.patient)
    scores = [evaluation.score for evaluation in ordered]
    table = to_json(scores, summarise(scores, settings))
    draws = draw(len(ordered), settings.bootstrap, settings.seed)
    return table | {
        "subgroups": {
            kind: {name: asdict(group) for name, group in groups.items()}
            for kind, groups in subgroups(scores, settings.bootstrap, settings.seed).items()
        },
        "calibration": {
            region: calibration.reliability([e.bins[region] for e in ordered], region, draws)
            for region in calibration.RULES
        },
        "thresholds": thresholds.curve([e.at_thresholds for e in ordered]),
    }
