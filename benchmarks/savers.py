"""Ways to save a training state, compared by ``checkpoint.py``: ours, what we did before, and PyTorch's own.

Each keeps its two newest checkpoints on the same disk and syncs what it writes.  Only ours has hashes.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

from bts_dist import checkpoint
from bts_dist.attempt import begin
from bts_dist.checkpoint import Memories, TrainState, checkpoint_name
from bts_dist.config import Config
from bts_dist.saver import Saver
from bts_dist.tensor_file import TensorMemory
from shards.store import LocalStore, open_store

KEEP = 2

Finish = Callable[[], object]
"""Waits until the checkpoint is complete; for a thread beside the training."""
Save = Callable[[TrainState, Config, int], Finish]
"""Saves a state as the one of a step, and returns when the training may go on."""


@contextmanager
def ours(where: str) -> Iterator[Save]:
    """As training does it: copy, then hash, store and prune in a thread."""
    with Saver(begin(open_store(where), None), KEEP) as saver:

        def save(state: TrainState, config: Config, step: int) -> Finish:
            saver.save(state, config, checkpoint_name(step, 1))
            return saver.wait

        yield save


@contextmanager
def ours_waited_for(where: str) -> Iterator[Save]:
    """The same without the thread."""
    run, memories = open_store(where), Memories(TensorMemory)

    def save(state: TrainState, config: Config, step: int) -> Finish:
        name = checkpoint_name(step, 1)
        checkpoint.publish(checkpoint.snapshot(state, config, memories), run, name)
        checkpoint.prune(run, name, KEEP)
        return _nothing

    yield save


@contextmanager
def ours_before(where: str) -> Iterator[Save]:
    """What ours did until this was measured: fresh memory, a scratch folder, each file read again to be hashed."""
    run = LocalStore(where, Path(where))

    def store(tensors: dict[str, dict[str, torch.Tensor]], name: str) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            for file, group in tensors.items():
                save_file(group, Path(scratch) / file)
            hashes = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in Path(scratch).iterdir()}
            for file in tensors:
                run.put(f"{checkpoint.FOLDER}/{name}/{file}", Path(scratch) / file)
            run.put(f"{checkpoint.FOLDER}/{name}/{checkpoint.FILES}", json.dumps(hashes).encode())
        checkpoint.prune(run, name, KEEP)

    with ThreadPoolExecutor(1) as pool:

        def save(state: TrainState, config: Config, step: int) -> Finish:
            tensors = {
                f"{part}.safetensors": {
                    key: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
                    for key, value in group.items()
                }
                for part, group in _parts(state).items()
            }
            return pool.submit(store, tensors, checkpoint_name(step, 1)).result

        yield save


@contextmanager
def torch_save(where: str) -> Iterator[Save]:
    """One file by ``torch.save``, synced and renamed; training waits for it."""
    folder = Path(where)
    folder.mkdir(parents=True)

    def save(state: TrainState, config: Config, step: int) -> Finish:
        path = folder / f"{step:08d}.pt"
        with path.with_suffix(".tmp").open("wb") as file:
            torch.save(_parts(state), file)
            file.flush()
            os.fsync(file.fileno())
        path.with_suffix(".tmp").rename(path)
        for old in sorted(folder.glob("*.pt"))[:-KEEP]:
            old.unlink()
        return _nothing

    yield save


@contextmanager
def dcp_thread(where: str) -> Iterator[Save]:
    """``async_save`` with nothing set: a thread writes a copy in fresh memory."""
    yield _dcp(where, None, AsyncCheckpointerType.THREAD)


@contextmanager
def dcp_thread_kept(where: str) -> Iterator[Save]:
    """A thread, and a stager that keeps its memory."""
    stager = DefaultStager(StagingOptions(False, False, False, False))
    yield _dcp(where, stager, AsyncCheckpointerType.THREAD)
    stager.close()


@contextmanager
def dcp_process_kept(where: str) -> Iterator[Save]:
    """A process that lives on, and a stager that keeps its memory, which the two share."""
    stager = DefaultStager(StagingOptions(False, True, False, False))
    yield _dcp(where, stager, AsyncCheckpointerType.PROCESS)
    stager.close()


WAYS = {
    "ours": ours,
    "ours, before": ours_before,
    "ours, waited for": ours_waited_for,
    "`torch.save` and fsync": torch_save,
    "DCP `async_save`, thread": dcp_thread,
    "DCP, thread, memory kept": dcp_thread_kept,
    "DCP, process, memory kept": dcp_process_kept,
}


def state_bytes(state: TrainState) -> int:
    return sum(value.nbytes for group in _parts(state).values() for value in group.values())


def _dcp(where: str, stager: DefaultStager | None, kind: AsyncCheckpointerType) -> Save:
    def save(state: TrainState, config: Config, step: int) -> Finish:
        there = Path(where) / f"{step:08d}"
        future: Any = dcp.async_save(
            _parts(state), checkpoint_id=there, async_checkpointer_type=kind, async_stager=stager
        )

        def finish() -> None:
            future.result()
            for old in sorted(Path(where).iterdir())[:-KEEP]:
                shutil.rmtree(old)

        return finish

    return save


def _parts(state: TrainState) -> dict[str, dict[str, torch.Tensor]]:
    """The state's tensors; some hundred bytes of JSON that ours saves as well are left out of the others' way."""
    moments = {
        f"{index}.{name}": value
        for index, values in enumerate(state.optimizer.state.values())
        for name, value in values.items()
    }
    assert state.ema is not None
    return {"model": state.model.state_dict(), "ema": state.ema.weights, "optim": moments}


def _nothing() -> None:
    """There is nothing left to wait for."""
