"""Tasks on the cluster: results, errors and lost workers."""

import os
from pathlib import Path

import pytest

from cluster.ray_map import ray_map
from shards.errors import InputError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def test_results_of_all_tasks_arrive() -> None:
    assert sorted(ray_map()(lambda number: number**2, [3, 1, 2])) == [1, 4, 9]


def test_a_task_s_own_error_is_raised_as_it_was() -> None:
    def refuse(number: int) -> int:
        raise InputError(f"shard {number} is damaged")

    with pytest.raises(InputError, match=r"^shard 7 is damaged$"):
        list(ray_map()(refuse, [7]))


def test_a_task_whose_worker_is_killed_runs_again(tmp_path: Path) -> None:
    def die_once(marker: str) -> str:
        if not os.path.exists(marker):
            open(marker, "w").close()
            os.kill(os.getpid(), 9)
        return "done"

    assert list(ray_map()(die_once, [str(tmp_path / "died")])) == ["done"]
    assert (tmp_path / "died").exists()
