"""One process, or one of torchrun's."""

import pytest
import torch
import torch.distributed as dist

from bts_dist.runtime import all_reduce, local_runtime, pick_device, torchrun_runtime
from shards.errors import InputError

TORCHRUN = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"]


def test_one_process_is_the_whole_world() -> None:
    runtime = local_runtime()
    assert (runtime.rank, runtime.world_size, runtime.local_rank) == (0, 1, 0)
    assert not runtime.preemption()
    assert not dist.is_initialized()


@pytest.mark.parametrize("missing", TORCHRUN)
def test_without_torchrun_its_variables_are_missed(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    for name in TORCHRUN:
        monkeypatch.setenv(name, "0")
    monkeypatch.delenv(missing)
    with pytest.raises(InputError, match=f"torchrun but {missing} is not set"), torchrun_runtime():
        pass


def test_alone_a_sum_over_ranks_is_the_tensor_itself() -> None:
    tensor = torch.ones(3)
    assert all_reduce(tensor) is tensor


def test_devices_are_dealt_to_the_ranks_of_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device(3) == torch.device("cpu")
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert pick_device(3) == torch.device("cuda", 1)
    assert chosen == [torch.device("cuda", 1)]
    # A process that was given no GPU takes none, though torch sees two.
    assert pick_device(3, gpus=0) == torch.device("cpu")
    assert local_runtime(gpus=0).device == torch.device("cpu")
    assert pick_device(3, gpus=0.5) == torch.device("cuda", 1)


def test_more_processes_than_gpus_are_refused_before_nccl_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(TORCHRUN, ("1", "1", "2", "2"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    with pytest.raises(InputError, match=r"2 processes and 1 GPUs .*--nproc-per-node"), torchrun_runtime():
        pass
