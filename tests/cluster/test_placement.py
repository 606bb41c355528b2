"""What a cluster can hold: by node, now and at its largest, and the refusal of what it never can."""

import math
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bts_dist.config import ClusterConfig
from cluster.placement import (
    NodeType,
    Room,
    fit_ever,
    fit_now,
    fit_side_by_side,
    fit_without_gpus,
    place,
)
from shards.errors import InputError

CPU_NODE, GPU_NODE = {"CPU": 4.0}, {"CPU": 4.0, "GPU": 2.0}

nodes = st.builds(
    lambda cpus, gpus: {"CPU": float(cpus), "GPU": float(gpus)}, st.integers(0, 16), st.integers(0, 8)
)
rooms = st.builds(
    Room,
    st.lists(nodes, max_size=5).map(tuple),
    st.booleans(),
    st.none()
    | st.lists(st.builds(NodeType, nodes, st.integers(0, 4) | st.just(math.inf)), max_size=4).map(tuple),
    st.integers(0, 6) | st.just(math.inf),
)
workers = st.builds(
    lambda cpus, gpus: {"CPU": cpus, **({"GPU": gpus} if gpus else {})},
    st.sampled_from([0.5, 1.0, 3.0, 8.0]),
    st.sampled_from([0.0, 0.25, 0.3, 0.6, 1.0, 2.0]),
)


def config(**values: Any) -> ClusterConfig:
    return ClusterConfig(**values)


@given(rooms, workers)
def test_what_fits_now_fits_ever_and_no_node_is_overfull(room: Room, worker: dict[str, float]) -> None:
    now = fit_now(room, worker)
    assert now <= fit_ever(room, worker)
    for name, each in worker.items():
        assert now * each <= sum(node.get(name, 0) for node in room.nodes) + 1e-6


@given(st.lists(nodes, min_size=1, max_size=4), workers)
def test_workers_placed_one_by_one_find_the_same_room(
    alive: list[dict[str, float]], worker: dict[str, float]
) -> None:
    placed = 0
    for node in alive:
        # A part of a GPU lies on one GPU.
        cpus, gpus = node["CPU"], [1.0] * int(node["GPU"])
        each = worker.get("GPU", 0.0)
        while cpus >= worker["CPU"]:
            if each >= 1:
                if len(gpus) < each:
                    break
                gpus = gpus[int(each) :]
            elif each > 0:
                fit = [n for n, left in enumerate(gpus) if left > each - 1e-9]
                if not fit:
                    break
                gpus[fit[0]] -= each
            cpus -= worker["CPU"]
            placed += 1
    assert fit_now(Room(tuple(alive)), worker) == placed


@given(rooms, workers, st.integers(1, 12))
def test_a_request_is_placed_if_and_only_if_it_can_ever_be(
    room: Room, worker: dict[str, float], count: int
) -> None:
    asked = config(workers=count, cpus_per_worker=worker["CPU"], gpus_per_worker=worker.get("GPU", 0))
    if fit_ever(room, worker) >= count:
        placed = place(asked, room, cuda=True)
        assert dict(placed.worker) == worker
        assert ("autoscaler" in " ".join(placed.notes)) == (placed.now < count)
    else:
        with pytest.raises(InputError, match=rf"^{count} workers with {worker['CPU']:g} CPU"):
            place(asked, room, cuda=True)


@given(rooms, st.integers(1, 6))
def test_left_to_itself_a_worker_gets_one_gpu_or_none(room: Room, count: int) -> None:
    assume(fit_ever(room, {"CPU": 1}) >= count)
    gpus = place(config(workers=count), room, cuda=True).gpus
    assert gpus in (0, 1)
    if gpus == 0 and room.types is not None:
        assert fit_ever(room, {"CPU": 1, "GPU": 1}) < count
    assert place(config(workers=count), room, cuda=False).gpus == 0


def test_a_worker_larger_than_any_node_is_refused_though_all_together_have_enough() -> None:
    room = Room((CPU_NODE, CPU_NODE, CPU_NODE))
    with pytest.raises(
        InputError, match=r"3 nodes have room for 0, and the most a node has is 4 CPU; lower cluster.cpus_per"
    ):
        place(config(workers=2, cpus_per_worker=6), room, cuda=True)


def test_gpus_asked_of_a_cluster_without_any() -> None:
    with pytest.raises(InputError, match=r"need 2 GPU, the cluster has 0; .*cluster.gpus_per_worker"):
        place(config(workers=2, gpus_per_worker=1), Room((CPU_NODE,)), cuda=True)


def test_gpus_asked_of_a_torch_without_cuda() -> None:
    with pytest.raises(InputError, match="install a CUDA build of torch"):
        place(config(workers=2, gpus_per_worker=1), Room((GPU_NODE,)), cuda=False)


def test_gpus_left_idle_are_told() -> None:
    (note,) = place(config(workers=2), Room((GPU_NODE,)), cuda=False).notes
    assert "torch is built without CUDA" in note
    (note,) = place(config(workers=3), Room((GPU_NODE, CPU_NODE)), cuda=True).notes
    assert "with a GPU each, 2 of 3 workers find room" in note
    assert place(config(workers=[2, 3]), Room((GPU_NODE, CPU_NODE)), cuda=True).gpus == 1


def test_an_autoscaler_is_waited_for_as_far_as_its_limits_reach() -> None:
    room = Room((CPU_NODE,), True, (NodeType(CPU_NODE, 1), NodeType(GPU_NODE, 3)), 3)
    placed = place(config(workers=4), room, cuda=True)
    assert (placed.gpus, placed.now) == (1, 0)
    (note,) = placed.notes
    assert "room for 0 of 4 workers with 1 CPU and 1 GPU each; waiting up to cluster.wait_minutes=30" in note
    with pytest.raises(InputError, match=r"can never run here.*room for 6, .*max_workers"):
        place(config(workers=7, gpus_per_worker=1), room, cuda=True)


def test_an_autoscaler_that_keeps_its_limits_to_itself_is_waited_for() -> None:
    placed = place(config(workers=64, gpus_per_worker=8), Room((CPU_NODE,), True, None), cuda=True)
    assert placed.now == 0
    assert "waiting" in placed.notes[0]
    # Nothing says that it has GPUs.
    assert place(config(workers=2), Room((CPU_NODE,), True, None), cuda=True).gpus == 0


@pytest.mark.parametrize(
    ("room", "asked", "together"),
    [
        (Room((GPU_NODE,)), None, 1),
        (Room((GPU_NODE,)), 4, 1),
        # From nothing: as many as the autoscaler may start nodes for, and no more than there are or were asked for.
        (Room((), True, (NodeType(GPU_NODE, 3),)), None, 3),
        (Room((), True, (NodeType(GPU_NODE, 3),)), 2, 2),
        (Room((GPU_NODE,), True, (NodeType(GPU_NODE, 300),)), None, 20),
        (Room((GPU_NODE,), True, (NodeType(GPU_NODE, math.inf),), 4), None, 4),
        # It does not tell: more than there is room for is only what is asked.
        (Room((), True, None), None, 1),
        (Room((GPU_NODE, GPU_NODE), True, None), None, 2),
        (Room((GPU_NODE,), True, None), 6, 6),
        (Room((GPU_NODE,), True, None), 99, 20),
    ],
)
def test_trials_side_by_side_on_a_cluster_that_may_grow(room: Room, asked: int | None, together: int) -> None:
    placed = place(config(workers=2, gpus_per_worker=1), room, cuda=True)
    assert fit_side_by_side(placed, 2, 20, asked) == together


@pytest.mark.parametrize(
    ("room", "most"),
    [
        (Room((CPU_NODE, GPU_NODE)), math.inf),
        (Room((), True, (NodeType(CPU_NODE, 2), NodeType(GPU_NODE, 9))), 8),
        (Room((CPU_NODE, CPU_NODE), True, (NodeType(CPU_NODE, 2), NodeType(GPU_NODE, 9))), 8),
        (Room((CPU_NODE,), True, (NodeType(CPU_NODE, math.inf),)), math.inf),
        # Nodes with GPUs that live do it too; none is started for more.
        (Room((GPU_NODE, GPU_NODE), True, (NodeType(GPU_NODE, 9),)), 8),
        (Room((CPU_NODE,), True, None), 4),
        (Room((), True, None), 0),
    ],
)
def test_tasks_without_gpus_start_no_nodes_that_have_some(room: Room, most: float) -> None:
    assert fit_without_gpus(room, {"CPU": 1}) == most
