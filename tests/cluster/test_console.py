"""What people see of an epoch."""

from typing import Any

import pytest

from bts_dist.account import TRAINING
from cluster.console import account_line, next_step, stage


def row(**figures: Any) -> dict[str, Any]:
    shares = {f"share/{activity}": 0.0 for activity in TRAINING}
    steady = {"straggler/rank": 3, "straggler/wait": 0.04, "flops_per_s": 12.46e9, "mfu": 0.02798}
    return {**shares, **steady, **figures}


def test_an_epochs_account_is_one_line() -> None:
    line = account_line(row(**{"share/data": 0.0081, "share/compute": 0.7276, "share/exchange": 0.175}))
    assert line == (
        "data 1%  augment 0%  compute 73%  exchange 18%  optimizer 0%  checkpoint 0%  other 0%  "
        "12.5 GFLOP/s (2.8% of peak)"
    )


def test_a_rank_that_others_wait_for_is_named() -> None:
    line = account_line(row(**{"share/exchange": 0.31, "straggler/wait": 0.29}))
    assert "exchange 31% (29% waiting for rank 3)" in line


def test_brackets_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    stage("score", "/data/[old]/runs [/]")
    next_step("bts train --set cluster.workers=[1,2] --set run.dir=/data/[old]")
    assert capsys.readouterr().out == (
        "score  /data/[old]/runs [/]\n  next: bts train --set cluster.workers=[1,2] --set run.dir=/data/[old]\n"
    )
