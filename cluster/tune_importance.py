"""Which settings mattered in a search."""

from collections.abc import Sequence

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from cluster.tune_ledger import Trial
from cluster.tune_search import distribution
from cluster.tune_space import Space

FEWEST = 4
"""Trials below which importance is not told."""

METHOD = (
    "How differently the best tenth of the trials and all of them are spread over each setting (PED-ANOVA, Watanabe "
    "et al., 2023), as shares of 1. Conditional settings are left out, and few trials give a rough picture."
)


def importance(space: Space, trials: Sequence[Trial]) -> dict[str, float]:
    """Share of each setting that every trial has; empty when too few trials can be compared.

    A trial that was stopped counts with its best score so far, as it does in the choice of the best.
    """
    places = {name: place for name, place in space.places().items() if name in space.nodes}
    study = _study()
    for trial in trials:
        params = {name: value for name, value in space.locate(trial.values).items() if name in places}
        best = trial.best
        # Also beside the space, as the config as it stands may be, there is nothing to compare.
        if params.keys() == places.keys() and trial.status != "failed" and best is not None and best == best:
            distributions = {name: distribution(place) for name, place in places.items()}
            study.add_trial(create_trial(value=best, params=params, distributions=distributions))
    values = {trial.value for trial in study.trials}
    if len(study.trials) < FEWEST or len(values) < 2:
        return {}
    return dict(get_param_importances(study, evaluator=PedAnovaImportanceEvaluator()))


def _study() -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(direction="maximize")
