"""Checkpoints that count only when whole: a folder of safetensors and JSON with a hash of each file.

``files.json`` is written last and names every other file with its sha256.  Without it, or with a file that does
not match, the folder is no checkpoint.  Nothing is ever unpickled.  A checkpoint is named by its step and by the
attempt that wrote it, so that a worker left over from an earlier attempt never writes into a later one's.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.amp import GradScaler

from bts_dist.config import Config
from bts_dist.optim import Ema
from bts_dist.tensor_file import TensorMemory
from shards.errors import InputError
from shards.store import MissingObject, ObjectStore

FOLDER = "checkpoints"
FACTS = ("config.json", "state.json")
"""Files that say what a checkpoint is of."""
MODEL = (*FACTS, "model.safetensors", "ema.safetensors")
"""Files that predicting takes: all but the optimizer's state, which is half of the bytes or more."""
FILES = "files.json"

_NAME = re.compile(r"step-(\d{8,})(?:-a(\d+))?")
_REMEDY = "restore the checkpoint or name another one"

Note = Callable[[str], None]


@dataclass
class Progress:
    """How far training has come, and what it has seen on the way: the JSON half of the state."""

    epoch: int = 0
    """Finished epochs."""
    step: int = 0
    """Finished optimizer steps: the position in training.  Those beyond the finished epochs are of the next one."""
    loss_sum: float = 0.0
    """Sum of the losses of the steps of the epoch that is under way."""
    val_dice: list[float] = field(default_factory=list)
    """``val/dice/patient`` of each finished epoch."""
    best: str | None = None
    """Name of the checkpoint with the highest validation score."""
    threshold: float = 0.5
    """Probability threshold chosen on the validation patients for these weights."""
    data_id: str = ""
    patients: list[str] = field(default_factory=list)
    """Patients trained or chosen on; none of them may ever be scored."""
    wandb_id: str | None = None
    skipped_steps: int = 0
    """Steps left out since their gradient, times the loss scale, overflowed in half precision."""
    cohort: dict[str, Any] | None = None
    """What the training patients are like, as ``cohort.to_json`` gives it; checkpoints made before there was it have
    none."""


@dataclass
class TrainState:
    """All that must survive a restart, and nothing else."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    progress: Progress
    scaler: GradScaler | None = None
    """Loss scale, in half precision only."""


def checkpoint_name(step: int, attempt: int) -> str:
    return f"step-{step:08d}-a{attempt}"


def is_name(text: str) -> bool:
    """Whether ``text`` is the name of a checkpoint."""
    return _NAME.fullmatch(text) is not None


def step_of(name: str) -> int:
    return _order(name)[0]


def _order(name: str) -> tuple[int, int]:
    """Step and attempt of a checkpoint; those of format 0.1's first weeks name no attempt."""
    found = _NAME.fullmatch(name)
    assert found is not None, name
    return int(found[1]), int(found[2] or 0)


@dataclass(frozen=True)
class Snapshot:
    """A training state at one moment, in main memory: training may go on while it is stored."""

    files: dict[str, bytes | memoryview]
    """File name to content, without ``files.json``."""

    def hashes(self) -> bytes:
        """The content of ``files.json``."""
        return json.dumps({name: _sha256(data) for name, data in self.files.items()}, indent=1).encode()


Memories = defaultdict[str, TensorMemory]
"""File name to the memory that its tensors are copied to."""


def snapshot(state: TrainState, config: Config, memories: Memories | None = None) -> Snapshot:
    """Copy all of a training state, over the snapshot taken before if ``memories`` are that one's."""
    memories = Memories(TensorMemory) if memories is None else memories
    tensors = {"model.safetensors": state.model.state_dict()}
    if state.ema is not None:
        tensors["ema.safetensors"] = state.ema.weights
    tensors["optim.safetensors"], scalars = _flatten_optimizer(state.optimizer)
    updates = state.ema.num_updates if state.ema is not None else 0
    record = {"progress": asdict(state.progress), "ema_updates": updates, "optimizer": scalars}
    if state.scaler is not None:
        record["scaler"] = state.scaler.state_dict()
    return Snapshot(
        {
            **{file: memories[file].copy(group) for file, group in tensors.items()},
            "state.json": json.dumps(record, indent=1).encode(),
            "config.json": config.model_dump_json(indent=1).encode(),
        }
    )


def save(state: TrainState, config: Config, folder: Path) -> None:
    """Write a complete checkpoint into the empty ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    copy = snapshot(state, config)
    for name, data in {**copy.files, FILES: copy.hashes()}.items():
        (folder / name).write_bytes(data)


def load(state: TrainState, folder: Path) -> None:
    """Restore ``state`` in place from a checkpoint folder that ``check`` accepts.

    Raises:
        InputError: the weights belong to another architecture.
    """
    record = json.loads((folder / "state.json").read_text())
    load_weights(state.model, folder / "model.safetensors")
    if state.ema is not None:
        if not (folder / "ema.safetensors").is_file():
            raise InputError(f"{folder} has no moving average; resume with --set optim.ema=null")
        state.ema.weights = {
            k: v.to(state.ema.weights[k].device) for k, v in load_file(folder / "ema.safetensors").items()
        }
        state.ema.num_updates = record["ema_updates"]
    _restore_optimizer(state.optimizer, load_file(folder / "optim.safetensors"), record["optimizer"])
    if state.scaler is not None and "scaler" in record:
        state.scaler.load_state_dict(record["scaler"])
    state.progress = Progress(**record["progress"])


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file into ``model``.

    Raises:
        InputError: it is none, or names or shapes differ from the model's; it says file and folder.
    """
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise InputError(f"{_called(path)} is no safetensors file ({error}); {_REMEDY}") from error
    wanted = model.state_dict()
    differing = [k for k in wanted.keys() | weights.keys() if _shape(wanted, k) != _shape(weights, k)]
    if differing:
        first = sorted(differing)[0]
        raise InputError(
            f"{_called(path)}: {len(differing)} tensors do not fit the configured model, first {first}: "
            f"{_shape(weights, first)} in the file, {_shape(wanted, first)} in the model; check the model section, or "
            f"{_REMEDY}"
        )
    model.load_state_dict(weights)


def read_progress(folder: Path) -> Progress:
    """A checkpoint's progress.  Raises ``InputError`` where ``state.json`` is not as this version writes it."""
    path = folder / "state.json"
    try:
        return Progress(**json.loads(path.read_text())["progress"])
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{_called(path)} is damaged or of another version ({type(error).__name__}: {error}); {_REMEDY}"
        ) from error


def read_config(folder: Path) -> Config:
    """A checkpoint's config.  Raises ``InputError`` where ``config.json`` is not as this version writes it."""
    path = folder / "config.json"
    try:
        return Config.model_validate_json(path.read_text())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "JSON"
        raise InputError(
            f"{_called(path)} is damaged or of another version ({where}: {first['msg']}); {_REMEDY}"
        ) from error


def _called(path: Path) -> str:
    """A checkpoint's file without the place that it was copied to."""
    return f"{path.parent.name}/{path.name}"


def check(folder: Path, only: Collection[str] | None = None) -> None:
    """Raise ``ValueError`` saying why ``folder`` is not a whole checkpoint, or lacks some files of ``only``."""
    if not (folder / FILES).is_file():
        raise ValueError(f"no {FILES}: it was never finished")
    for name, sha256 in json.loads((folder / FILES).read_text()).items():
        if only is not None and name not in only:
            continue
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
        if _sha256((folder / name).read_bytes()) != sha256:
            raise ValueError(f"{name} does not match its sha256")


def publish(copy: Snapshot, run: ObjectStore, name: str) -> None:
    """Put a checkpoint into the run's store, the file that makes it count last, and only if it is not there.

    The store checks each file's content as it arrives; here the sizes are looked at once more.

    Raises:
        OSError: what arrived is not what was sent.
        AlreadyExists: the checkpoint was published before.
    """
    prefix = f"{FOLDER}/{name}/"
    hashes = copy.hashes()
    for file, data in copy.files.items():
        run.put(prefix + file, data)
    arrived = {entry.key: entry.size for entry in run.list(prefix)}
    short = [file for file, data in copy.files.items() if arrived.get(prefix + file) != len(data)]
    if short:
        raise OSError(f"{run.uri}: {prefix}{short[0]} did not arrive whole; the checkpoint was not published")
    run.put(prefix + FILES, hashes, if_absent=True)


def names(run: ObjectStore) -> list[str]:
    """Names of the checkpoints in a run, whole or not, newest first."""
    found = {e.key.split("/")[1] for e in run.list(f"{FOLDER}/")}
    return sorted(filter(is_name, found), key=_order, reverse=True)


def fetch(run: ObjectStore, name: str, dest: Path, only: Collection[str] | None = None) -> Path:
    """Copy one checkpoint to ``dest``, or ``only`` some of its files, and check what came.

    Raises:
        ValueError: it is not whole.
    """
    dest.mkdir(parents=True, exist_ok=True)
    prefix = f"{FOLDER}/{name}/"
    try:
        listed = json.loads(run.get(prefix + FILES))
        if not isinstance(listed, dict):
            raise ValueError(f"{FILES} is damaged")
        for file in [*(file for file in listed if only is None or file in only), FILES]:
            (dest / file).write_bytes(run.get(prefix + file))
    except MissingObject as error:
        raise ValueError(f"{error.key} is missing") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{FILES} is damaged") from error
    check(dest, only)
    return dest


def fetch_newest(
    run: ObjectStore, dest: Path, note: Note, only: Collection[str] | None = None
) -> Path | None:
    """The newest checkpoint that is whole, or whose files of ``only`` are; ``note`` is told of those passed over.

    None when there is none.
    """
    for name in names(run):
        try:
            return fetch(run, name, dest / name, only)
        except ValueError as error:
            note(f"skipping checkpoint {name}: {error}")
    return None


def prune(run: ObjectStore, newest: str, keep: int) -> None:
    """Delete all but the ``keep`` newest checkpoints, ``newest`` the first, the best one that each of them names, and
    those that a kept one was chosen to be averaged with.

    Whichever of the kept ones training resumes from, its best one is there.  What lies beyond ``newest`` was passed
    over as damaged when training resumed before it, and goes.
    """
    found = names(run)
    kept = [name for name in found if _order(name) <= _order(newest)][:keep]
    best = {_best_of(run, name) for name in kept}
    spared = {*kept, *best}
    spared |= {member for name in spared if name is not None for member in _averaged_with(run, name)}
    for name in found:
        if name in spared:
            continue
        # Without files.json it no longer counts, so a kill half-way leaves nothing to trust.
        run.delete(f"{FOLDER}/{name}/{FILES}")
        for entry in run.list(f"{FOLDER}/{name}/"):
            run.delete(entry.key)


def _best_of(run: ObjectStore, name: str) -> str | None:
    try:
        best: str | None = json.loads(run.get(f"{FOLDER}/{name}/state.json"))["progress"]["best"]
    except (MissingObject, ValueError, KeyError):
        return None  # damaged: nothing will resume from it
    return best


def _averaged_with(run: ObjectStore, name: str) -> list[str]:
    """Checkpoints of this run that ``bts_dist.inference`` has recorded as members of one's ensemble."""
    try:
        members = json.loads(run.get(f"inference/{name}.json"))["members"]
        return [member["uri"].removeprefix(f"{FOLDER}/") for member in members]
    except (MissingObject, ValueError, KeyError, TypeError):
        return []  # nothing was chosen for it


def _flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": value for index, values in state["state"].items() for name, value in values.items()
    }
    return tensors, {"param_groups": state["param_groups"]}


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], scalars: dict[str, Any]
) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, **scalars})


def _shape(weights: dict[str, Tensor], key: str) -> tuple[int, ...] | None:
    return tuple(weights[key].shape) if key in weights else None


def _sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()
