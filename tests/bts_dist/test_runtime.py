"""One process, or one of torchrun's."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from bts_dist import checkpoint
from bts_dist.runtime import LocalRuntime, all_reduce, local_runtime, pick_device, torchrun_runtime
from shards.errors import InputError
from shards.store import LocalStore


def test_one_process_is_the_whole_world(run: LocalStore) -> None:
    with local_runtime(run) as runtime:
        assert (runtime.rank, runtime.world_size, runtime.local_rank) == (0, 1, 0)
        assert runtime.latest_checkpoint(pytest.fail) is None
        scratch = runtime.scratch
        assert scratch.is_dir()
    assert not scratch.exists()
    assert not dist.is_initialized()


def test_a_reported_checkpoint_is_in_the_run(runtime: LocalRuntime, tmp_path: Path) -> None:
    folder = tmp_path / "step-00000001"
    folder.mkdir()
    (folder / "state.json").write_text("{}")
    digest = checkpoint._sha256(folder / "state.json")
    (folder / "files.json").write_text(f'{{"state.json": "{digest}"}}')
    runtime.report({"epoch": 1}, folder)
    runtime.report({"epoch": 1}, None)
    latest = runtime.latest_checkpoint(pytest.fail)
    assert latest is not None
    assert latest != folder
    assert latest.name == "step-00000001"
    assert checkpoint.names(runtime.run) == ["step-00000001"]


@pytest.mark.parametrize("missing", ["RANK", "LOCAL_RANK", "WORLD_SIZE"])
def test_without_torchrun_its_variables_are_missed(
    run: LocalStore, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "0")
    monkeypatch.delenv(missing)
    with pytest.raises(InputError, match=f"torchrun but {missing} is not set"), torchrun_runtime(run):
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
