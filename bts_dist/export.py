"""A checkpoint as files that other programs run: ONNX, torch.export, and safetensors with a config.

The folder is made beside its place and renamed when every file in it predicts what scoring predicts, so that it is
there whole or not at all.
"""

import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch.export import Dim, ExportedProgram

from bts_dist.config import Config
from bts_dist.ensemble import num_networks
from bts_dist.exported import CONFIG, FORMAT, RECORD, WEIGHTS, ExportedConfig, open_exported, sha256_of
from bts_dist.model import Model, ModelPlace
from bts_dist.model_card import CARD, CardFacts, model_card
from bts_dist.parity import LIMIT, Engine, Parity, ParitySlices, measure, parity_slices, scored
from bts_dist.run import training_recipe
from bts_dist.volume_model import VolumeModel
from shards.encode import Pixels
from shards.errors import InputError
from shards.verify import SEQUENCES

PROGRAM = "model.pt2"
ONNX = "model.onnx"

_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_VERSIONS = ("torch", *_NEEDED, "safetensors", "numpy", "bts-dist")
_EXPORTER = "torch.onnx._internal.exporter._registration"


@dataclass(frozen=True)
class Export:
    """What was published, and how near it is to scoring."""

    folder: Path
    slices: str
    """What parity was measured on, in words."""
    parity: dict[str, Parity]
    """By the name of the engine."""
    sizes: dict[str, int]
    """Bytes of each file."""


def check_packages() -> None:
    """Raise ``InputError`` where a package is missing that exporting needs and training does not."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"bts export needs {', '.join(missing)}; in the folder of bts-dist run: "
            "pip install --constraint constraints.txt --editable '.[export]'"
        )


def check_free(out: Path) -> None:
    """Raise ``InputError`` unless ``out`` is a place for a new folder."""
    if "://" in str(out) or str(out).startswith("s3:"):
        raise InputError(f"{out}: an export is written to a local folder; copy it from there")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} exists and is not an empty folder; delete it or choose another one")


def export_model(place: ModelPlace, model: Model, config: Config, out: Path) -> Export:
    """Write ``model``, the checkpoint at ``place``, to the folder ``out``.

    ``config`` says where slices for the comparison lie (``data.shards``, ``store``) and how many are predicted at a
    time (``score.batch``).  All else is as the checkpoint has it.

    Raises:
        InputError: ``out`` holds something or cannot be made, a package is missing, or the model's output is not
            finite.
        ParityError: a file predicts something else than scoring does; nothing is left at ``out``.
    """
    check_packages()
    check_free(out)
    out = out.resolve()
    with _beside(out) as folder, parity_slices(config, model) as slices:
        # Before tracing, which takes long: a model that gives no numbers is told at once.
        wanted = scored(model, slices, config.score.batch)
        write_network(model, folder)
        parity = measure(model, slices, engines(folder), wanted)
        sizes = _write_words(place, model, config, slices, parity, folder)
        folder.replace(out)
    return Export(out, slices.description, parity, sizes)


def write_network(model: Model, folder: Path) -> None:
    """Write the network in its three forms, each with all that scoring does around it."""
    config = ExportedConfig(
        sequences=SEQUENCES,
        model=model.config.model,
        image_size=model.config.data.image_size,
        members=num_networks(model.network),
        mirror=model.inference.mirror,
        threshold=model.inference.threshold,
        components=model.inference.keep,
    )
    (folder / CONFIG).write_text(config.model_dump_json(indent=1) + "\n", encoding="utf-8")
    weights = {name: tensor.contiguous() for name, tensor in model.network.state_dict().items()}
    (folder / WEIGHTS).write_bytes(save(weights))
    with _quiet():
        whole = VolumeModel(model.network, config.image_size, config.threshold, mirror=config.mirror)
        program = trace(whole, 1 if config.image_size is not None else 2 ** (config.model.depth - 1))
        write_program(program, folder / PROGRAM)
        write_onnx(program, folder / ONNX)


def trace(model: VolumeModel, step: int) -> ExportedProgram:
    """The model as a graph in which the number of slices is free, and height and width are multiples of ``step``."""
    height, width = Dim("rows", min=1), Dim("columns", min=1)
    example = torch.zeros(2, 4 * step, 6 * step, 3, dtype=torch.uint8)
    shapes = {0: Dim("slices", min=1), 1: step * height, 2: step * width}
    with torch.no_grad():
        program = torch.export.export(model.eval(), (example,), dynamic_shapes=(shapes,))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it has this machine's paths in it
    return program


def write_program(program: ExportedProgram, path: Path) -> None:
    torch.export.save(program, path)


def write_onnx(program: ExportedProgram, path: Path) -> None:
    """Write one file with the weights inside: input ``volume``, outputs ``probability`` and ``mask``."""
    torch.onnx.export(
        program,
        (),
        path,
        dynamo=True,
        external_data=False,
        input_names=["volume"],
        output_names=["probability", "mask"],
        verbose=False,
    )


def engines(folder: Path) -> dict[str, Engine]:
    """What runs each of the written files, as another program would load it."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / ONNX, providers=["CPUExecutionProvider"])
    program = torch.export.load(folder / PROGRAM).module()
    loaded = open_exported(folder, torch.device("cpu"))

    def run_onnx(volume: Pixels) -> Any:
        return session.run(["probability", "mask"], {"volume": volume})

    def run_program(volume: Pixels) -> Any:
        with torch.inference_mode():
            return [output.numpy() for output in program(torch.from_numpy(volume))]

    return {
        f"{ONNX} (ONNX Runtime)": run_onnx,
        f"{PROGRAM} (torch.export)": run_program,
        WEIGHTS: loaded.predict,
    }


def _write_words(
    place: ModelPlace,
    model: Model,
    config: Config,
    slices: ParitySlices,
    parity: dict[str, Parity],
    folder: Path,
) -> dict[str, int]:
    """Write the card and, last, the record; the size of each file."""
    facts = CardFacts(place, model, config, slices, parity, LIMIT)
    (folder / CARD).write_text(model_card(facts), encoding="utf-8")
    names = sorted(path.name for path in folder.iterdir())
    record = {
        "format": FORMAT,
        "run": place.run.rstrip("/").rpartition("/")[2],
        "checkpoint": place.name,
        "epoch": [own.progress.epoch for _, own in model.folds] or model.progress.epoch,
        "weights": "moving average" if model.config.optim.ema is not None else "as trained",
        "inference": _without_places(model.inference.to_json()),
        "data_id": model.progress.data_id,
        "parity": {
            "slices": slices.description,
            "real": slices.real,
            "limit": LIMIT,
            "found": {name: asdict(each) for name, each in parity.items()},
        },
        "recipe": training_recipe(model.config),
        "versions": {name: version(name) for name in _VERSIONS},
        "files": {
            name: {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size}
            for name in names
        },
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def _without_places(inference: dict[str, Any]) -> dict[str, Any]:
    """Members by the names of their runs and checkpoints: where they lie is nobody's business."""
    named = ["/".join(member["uri"].split("/")[-3::2]) for member in inference["members"]]
    return {key: value for key, value in inference.items() if key != "ensemble"} | {"members": named}


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """An empty folder on the file system of ``out``, gone afterwards unless it has been renamed."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent)
    except OSError as error:
        raise InputError(f"{out}: cannot be created ({error}); choose another folder") from error
    with scratch:
        folder = Path(scratch.name) / out.name  # the scratch folder itself is closed to other users
        folder.mkdir()
        yield folder


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter says of its own insides on every export."""
    logger = logging.getLogger(_EXPORTER)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
