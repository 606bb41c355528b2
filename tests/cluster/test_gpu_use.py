"""Which GPUs will work is said of every config, and what an instance needs for all of its own to work."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bts_dist.compose import load_config, with_overrides
from bts_dist.config import ClusterConfig, Config
from cluster.gpu_use import all_gpus_work, workers_in_words
from cluster.placement import Room, place


def cluster(**values: object) -> ClusterConfig:
    return ClusterConfig.model_validate(values)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (cluster(), "with a GPU each where the cluster has, or can start, 2; on CPUs elsewhere"),
        (
            cluster(workers=(3, 8)),
            "3 to 8 (cluster.workers), with a GPU each where the cluster has, or can start, 3;",
        ),
        (cluster(gpus_per_worker=0), "2 (cluster.workers), on CPUs"),
        (cluster(gpus_per_worker=1), "2 (cluster.workers) with 1 GPU each: 2 GPUs"),
        (
            cluster(workers=(2, 6), gpus_per_worker=0.5),
            "2 to 6 (cluster.workers) with 0.5 GPU each: 1 to 3 GPUs",
        ),
        (cluster(runtime="local"), "one (cluster.runtime=local), on a GPU where torch finds one"),
        (cluster(runtime="local", gpus_per_worker=0), "one (cluster.runtime=local), on the CPU"),
        (cluster(runtime="torchrun"), "as many as torchrun starts, each on a GPU"),
        (cluster(runtime="torchrun", gpus_per_worker=0), "as many as torchrun starts, on CPUs"),
    ],
)
def test_what_workers_compute_on_is_said(config: ClusterConfig, words: str) -> None:
    assert words in workers_in_words(config)


@pytest.mark.parametrize(
    ("config", "gpus", "settings"),
    [
        (cluster(), 2, ""),
        (cluster(), 8, "cluster.workers=8"),
        (cluster(), 1, "cluster.workers=1"),
        (cluster(workers=(1, 8)), 4, ""),
        (cluster(workers=(2, 4)), 8, "cluster.workers=8"),
        (cluster(workers=(2, 4)), 1, "cluster.workers=1"),
        (cluster(gpus_per_worker=0), 2, "cluster.gpus_per_worker=1"),
        (cluster(gpus_per_worker=2), 4, "cluster.gpus_per_worker=1, cluster.workers=4"),
        (cluster(workers=8, gpus_per_worker=0.3), 4, "cluster.workers=12"),
        (cluster(runtime="local"), 1, ""),
        (cluster(runtime="local"), 4, "cluster.runtime=ray, cluster.workers=4"),
        (cluster(runtime="local"), 2, "cluster.runtime=ray"),
        (cluster(runtime="local", gpus_per_worker=0.5), 8, "cluster.runtime=ray, cluster.workers=16"),
        (
            cluster(runtime="local", gpus_per_worker=2),
            8,
            "cluster.runtime=ray, cluster.gpus_per_worker=1, cluster.workers=8",
        ),
        (cluster(runtime="local", gpus_per_worker=0), 1, "cluster.gpus_per_worker=1"),
        (cluster(runtime="torchrun"), 4, "--nproc-per-node=4"),
        (cluster(runtime="torchrun", gpus_per_worker=0), 2, "--nproc-per-node=2, cluster.gpus_per_worker=1"),
    ],
)
def test_what_an_instance_needs(config: ClusterConfig, gpus: int, settings: str) -> None:
    assert all_gpus_work(Config().model_copy(update={"cluster": config}), gpus) == settings


@given(
    st.integers(1, 16),
    st.integers(1, 9),
    st.integers(0, 8),
    st.sampled_from([None, 0, 0.25, 0.5, 1, 2]),
    st.sampled_from(["ray", "local"]),
    st.integers(18, 64),
)
def test_with_what_it_needs_a_worker_is_on_every_gpu(
    gpus: int, fewest: int, more: int, each: float | None, runtime: str, global_batch: int
) -> None:
    config = with_overrides(
        Config(),
        {
            "cluster.workers": (fewest, fewest + more),
            "cluster.gpus_per_worker": each,
            "cluster.runtime": runtime,
            "train.global_batch": global_batch,
        },
    )
    needs = all_gpus_work(config, gpus)
    whole = load_config([], needs.split(", ") if needs else [], config)
    assert all_gpus_work(whole, gpus) == ""
    changed = whole.cluster
    if changed.runtime == "local":
        assert (gpus, changed.gpus_per_worker != 0) == (1, True)
        return
    found = place(changed, Room(({"CPU": 1000.0, "GPU": float(gpus)},)), cuda=True)
    assert 0 < found.gpus <= 1
    # As many workers as the config wants and the machine has room for take all GPUs.
    assert min(found.now, changed.most) == gpus * int(1 / found.gpus + 1e-9)
