"""A run with one checkpoint whose weights are as they were drawn, for tests of what is done with a model."""

import hashlib
import json
from pathlib import Path

import torch

from bts_dist.checkpoint import FILES, FOLDER, Progress, TrainState, publish, snapshot
from bts_dist.config import Config
from bts_dist.unet import make_unet
from shards.store import LocalStore

NAME = "step-00000001-a1"
THRESHOLD = 0.018
"""Near the probability that fresh weights give every pixel, so that some are above it and some below."""


def fresh_run(
    root: Path,
    config: Config,
    *,
    broken: bool = False,
    patients: tuple[str, ...] = (),
    data_id: str = "none",
    val_dice: float = 0.5,
) -> str:
    """Publish a checkpoint with fresh weights, one of them NaN if ``broken``; the run's location."""
    torch.manual_seed(0)
    network = make_unet(config.model, torch.device("cpu"))
    if broken:
        torch.nn.init.constant_(network.heads[0].weight, float("nan"))
    optimizer = torch.optim.SGD(network.parameters(), lr=1)
    progress = Progress(
        epoch=1,
        step=1,
        best=NAME,
        val_dice=[val_dice],
        threshold=THRESHOLD,
        data_id=data_id,
        patients=list(patients),
    )
    publish(
        snapshot(TrainState(network, optimizer, None, progress), config), LocalStore(str(root), root), NAME
    )
    return str(root)


def vouch(run: str) -> Path:
    """Make the changed files of a run's checkpoint count, as if they had been written so; the checkpoint's folder."""
    folder = Path(run) / FOLDER / NAME
    names = json.loads((folder / FILES).read_text())
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / FILES).write_text(json.dumps(hashes))
    return folder
