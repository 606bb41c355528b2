"""How large the models of a search are beside the config's own."""

from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.flops import count_flops
from cluster.tune_search import make_searcher
from cluster.tune_space import Values

_KEYS = ("model", "data.image_size")


def largest_trial(config: Config, sides: tuple[int, int]) -> float:
    """The most operations that a slice of ``sides`` (H, W) takes in a trial, by those of the config itself.

    Counted for the search's own proposals, or for examples of what Optuna may draw; 1 where no key of ``tune.space`` or
    ``tune.points`` changes them.  Trials that cannot train on slices of this size do not count.

    Raises:
        InputError: as ``make_searcher``.
    """
    searcher = make_searcher(config)
    configs = [with_overrides(config, sized) for sized in map(_sized, searcher.examples()) if sized]
    counts = [count for each in configs if (count := _operations(each, sides)) is not None]
    own = _operations(config, sides)
    return max([own, *counts]) / own if own else 1.0


def _sized(values: Values) -> Values:
    return {key: value for key, value in values.items() if key.startswith(_KEYS)}


def _operations(config: Config, sides: tuple[int, int]) -> int | None:
    size = config.data.image_size
    seen = sides if size is None else (size, size)
    step = 2 ** (config.model.depth - 1)
    return None if any(side % step for side in seen) else count_flops(config.model, seen)
