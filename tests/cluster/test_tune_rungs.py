"""Which trials go on at each rung, as a function of what was scored."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from bts_dist.config import TuneConfig
from cluster.tune_rungs import bracket_of, num_brackets, replay, rungs

ASHA = TuneConfig(epochs=9, grace_epochs=1, reduction=3, scheduler="asha")


def test_rungs_are_powers_below_the_last_epoch() -> None:
    assert rungs(ASHA) == [1, 3]
    assert rungs(ASHA.model_copy(update={"grace_epochs": 2})) == [2, 6]
    assert rungs(ASHA.model_copy(update={"scheduler": "fifo"})) == []
    hyperband = ASHA.model_copy(update={"scheduler": "hyperband"})
    assert [rungs(hyperband, s) for s in range(num_brackets(hyperband))] == [[1, 3], [3], []]


def test_the_best_third_goes_on() -> None:
    scores = {number: [score] for number, score in enumerate([0.5, 0.1, 0.9, 0.8, 0.7, 0.2, 0.6])}
    state = replay(ASHA, scores)
    # Seven have come to the rung: two go on, and the config as it stands does in any case.
    assert [n for n in scores if state.goes_on(n, 1)] == [0, 2, 3]


def test_the_first_at_a_rung_goes_on_and_a_figure_that_is_none_does_not() -> None:
    assert replay(ASHA, {4: [0.0]}).goes_on(4, 1)
    state = replay(ASHA, {0: [0.0], 1: [float("nan")], 2: [0.0]})
    assert not state.goes_on(1, 1)


def test_between_rungs_nobody_is_stopped() -> None:
    state = replay(ASHA, {n: [0.9, 0.1 * n] for n in range(5)})
    assert all(state.goes_on(n, 2) for n in range(5))


def test_without_a_scheduler_nobody_is_stopped() -> None:
    state = replay(ASHA.model_copy(update={"scheduler": "fifo"}), {n: [-n] * 9 for n in range(9)})
    assert all(state.goes_on(n, epoch) for n in range(9) for epoch in range(1, 10))


def test_hyperband_compares_within_a_bracket() -> None:
    config = ASHA.model_copy(update={"scheduler": "hyperband"})
    numbers = range(40)
    scores = {n: [n / 100] * 9 for n in numbers}
    state = replay(config, scores)
    for n in numbers:
        if 1 not in rungs(config, bracket_of(config, n)):
            assert state.goes_on(n, 1)
    stopped = [n for n in numbers if not state.goes_on(n, 1)]
    assert stopped
    assert {bracket_of(config, n) for n in stopped} == {0}


def test_early_brackets_get_more_trials() -> None:
    config = ASHA.model_copy(update={"scheduler": "hyperband"})
    counts = Counter(bracket_of(config, n) for n in range(90))
    # 9/3, 3/2 and 1/1.
    assert [round(counts[s] / 90, 1) for s in range(3)] == [0.5, 0.3, 0.2]


@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=9), min_size=1, max_size=12))
def test_a_replay_in_another_order_is_the_same(histories: list[list[float]]) -> None:
    scores = dict(enumerate(histories))
    backwards = dict(reversed(scores.items()))
    assert replay(ASHA, scores).reached == replay(ASHA, backwards).reached
