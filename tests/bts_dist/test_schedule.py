"""Each schedule's ends, its rising and falling parts, and that it is a function of its arguments alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bts_dist.config import (
    ConstantSchedule,
    CosineSchedule,
    OneCycleSchedule,
    PlateauSchedule,
    PolynomialSchedule,
    ScheduleConfig,
    StepSchedule,
)
from bts_dist.schedule import lr_factor

EPOCHS = 20


def curve(config: ScheduleConfig, start: float = 0.0, stop: float = EPOCHS) -> list[float]:
    num = 200
    return [lr_factor(config, start + (stop - start) * i / num, EPOCHS) for i in range(num + 1)]


def rises(values: list[float]) -> bool:
    return values == sorted(values) and values[0] < values[-1]


def falls(values: list[float]) -> bool:
    return rises(values[::-1])


def test_constant_is_constant() -> None:
    assert set(curve(ConstantSchedule())) == {1.0}


def test_step_falls_by_its_factor_at_each_of_its_epochs() -> None:
    config = StepSchedule(every_epochs=5, factor=0.1)
    at = [lr_factor(config, epoch, EPOCHS) for epoch in (0, 4.999, 5, 9.999, 10, 15)]
    assert at == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.001])
    # An epoch boundary as training reckons it, with the rounding of a division.
    assert lr_factor(StepSchedule(every_epochs=0.1, factor=0.5), 0.1 + 0.2 - 2e-17, 1) == pytest.approx(0.125)


def test_cosine_rises_to_the_peak_and_falls_to_its_final() -> None:
    config = CosineSchedule(warmup_epochs=2, final=0.1)
    assert lr_factor(config, 0, EPOCHS) == pytest.approx(0.01)
    assert lr_factor(config, 1, EPOCHS) == pytest.approx(0.5)
    assert lr_factor(config, 2, EPOCHS) == 1
    assert lr_factor(config, 11, EPOCHS) == pytest.approx(0.55)
    assert lr_factor(config, EPOCHS, EPOCHS) == pytest.approx(0.1)
    assert rises(curve(config, 0, 2))
    assert falls(curve(config, 2))
    assert lr_factor(CosineSchedule(warmup_epochs=0), 0, EPOCHS) == 1


def test_a_warm_up_longer_than_the_training_only_rises() -> None:
    config = CosineSchedule(warmup_epochs=EPOCHS + 5, final=1.0)
    assert rises(curve(config))


def test_one_cycle_starts_low_peaks_and_ends_lower() -> None:
    config = OneCycleSchedule(warmup=0.25, start=0.2, final=0.01)
    assert lr_factor(config, 0, EPOCHS) == pytest.approx(0.2)
    assert lr_factor(config, 2.5, EPOCHS) == pytest.approx(0.6)
    assert lr_factor(config, 5, EPOCHS) == pytest.approx(1)
    assert lr_factor(config, EPOCHS, EPOCHS) == pytest.approx(0.01)
    assert rises(curve(config, 0, 5))
    assert falls(curve(config, 5))


def test_polynomial_falls_to_nothing() -> None:
    config = PolynomialSchedule(power=2, warmup_epochs=4)
    assert [lr_factor(config, epoch, EPOCHS) for epoch in (2, 4, 12, EPOCHS)] == pytest.approx(
        [0.5, 1, 0.25, 0]
    )
    assert falls(curve(config, 4))


@pytest.mark.parametrize(
    ("scores", "factor"),
    [
        ([], 1),
        ([0.5, 0.4, 0.4], 1),
        ([0.5, 0.4, 0.4, 0.4], 0.5),
        ([0.5, 0.5, 0.5, 0.5], 0.5),  # an equal score is no better one
        ([0.5, 0.4, 0.4, 0.6, 0.5, 0.5], 1),  # a better one starts the count anew
        ([0.5] + [0.4] * 6, 0.25),
        ([0.5] + [0.4] * 5, 0.5),
        ([0.5] + [0.4] * 30, 0.1),  # the floor
    ],
)
def test_plateau_falls_after_more_epochs_without_a_better_score_than_its_patience(
    scores: list[float], factor: float
) -> None:
    config = PlateauSchedule(patience=2, factor=0.5, floor=0.1)
    assert lr_factor(config, len(scores), EPOCHS, scores) == pytest.approx(factor)
    assert lr_factor(config, 3, 99, tuple(scores)) == pytest.approx(factor)  # by the scores alone


schedules = st.one_of(
    st.builds(ConstantSchedule),
    st.builds(StepSchedule, every_epochs=st.floats(0.1, 50), factor=st.floats(0.01, 1)),
    st.builds(CosineSchedule, warmup_epochs=st.floats(0, 60), final=st.floats(0, 1)),
    st.builds(
        OneCycleSchedule, warmup=st.floats(0.01, 0.99), start=st.floats(0.01, 1), final=st.floats(0, 1)
    ),
    st.builds(PolynomialSchedule, power=st.floats(0.1, 5), warmup_epochs=st.floats(0, 60)),
    st.builds(PlateauSchedule, patience=st.integers(0, 5), factor=st.floats(0.1, 0.9), floor=st.floats(0, 1)),
)


@given(schedules, st.integers(1, 50), st.floats(0, 1), st.lists(st.floats(0, 1), max_size=30))
def test_a_factor_is_never_negative_nor_above_the_peak(
    config: ScheduleConfig, num_epochs: int, share: float, scores: list[float]
) -> None:
    factor = lr_factor(config, share * num_epochs, num_epochs, scores)
    assert 0 <= factor <= 1 + 1e-12
    assert factor == lr_factor(config, share * num_epochs, num_epochs, scores)
