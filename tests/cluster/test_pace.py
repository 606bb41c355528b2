import pytest

from cluster.pace import OVER_S, Pace


def test_rates_and_time_left_follow_from_what_was_done_by_when() -> None:
    pace = Pace("slices", 100.0)
    assert pace.rates() == []
    assert pace.left(3229) == ""
    pace.add(102.0, 824, 62_000_000)
    assert pace.rates() == ["412 slices/s", "31 MB/s"]
    assert pace.left(3229) == "0:06 left"
    pace.add(104.0, 3229, 240_000_000)
    assert pace.left(3229) == ""


def test_a_rate_without_bytes_speaks_of_none() -> None:
    pace = Pace("patients", 0.0)
    pace.add(4.0, 10)
    assert pace.rates() == ["2.5 patients/s"]


def test_what_a_restart_finds_finished_is_soon_forgotten() -> None:
    pace = Pace("slices", 0.0)
    pace.add(1.0, 10_000)
    for second in range(2, 3 * int(OVER_S)):
        pace.add(float(second), 10_000 + 100 * second)
    assert pace.rates() == ["100 slices/s"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(4, "0:04"), (60, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (90_061, "25:01:01")],
)
def test_time_is_shown_as_a_clock(seconds: int, shown: str) -> None:
    pace = Pace("slices", 0.0)
    pace.add(1.0, 1)
    assert pace.left(1 + seconds) == f"{shown} left"
