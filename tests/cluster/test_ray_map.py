"""Tasks on the cluster: results, errors and lost workers."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from cluster.ray_map import ray_map
from shards.errors import InputError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def test_results_of_all_tasks_arrive() -> None:
    assert sorted(ray_map()(lambda number: number**2, [3, 1, 2])) == [1, 4, 9]


def test_tasks_are_drawn_as_the_cluster_has_room() -> None:
    cpus = int(ray.cluster_resources()["CPU"])
    drawn: list[int] = []

    def tasks() -> Iterator[int]:
        for number in range(10 * cpus):
            drawn.append(number)
            yield number

    for taken, _ in enumerate(ray_map()(lambda number: number, tasks())):
        assert len(drawn) <= taken + 2 * cpus
    assert taken + 1 == len(drawn) == 10 * cpus


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
