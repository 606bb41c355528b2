"""Prediction as a stage: masks for images without any, in this process."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bts_dist.compose import load_config, with_overrides
from bts_dist.intake import find_studies
from bts_dist.model import find_model, load_model
from bts_dist.prediction import VOLUMES, check_free, run_prediction
from bts_dist.runtime import pick_device
from cluster import console
from shards.config import StoreConfig


def predict(model: str, source: str, out: Path, files: list[str], overrides: list[str]) -> None:
    """Predict on the images at ``source``; settings are those of the model, with ``files`` and ``overrides`` over them.

    Raises:
        InputError: as ``find_model``, ``load_model``, ``find_studies`` and ``run_prediction``.
    """
    check_free(out)
    store = StoreConfig()
    place = find_model(model, store)
    loaded = load_model(place, store, torch.device("cpu"))
    # Whether training had GPUs is no matter here.
    base = with_overrides(loaded.config, {"cluster.gpus_per_worker": None})
    config = load_config(files, overrides, base)
    device = pick_device(0, config.cluster.gpus_per_worker)
    loaded = replace(loaded, network=loaded.network.to(device), device=device)
    with console.progress("look at input", unit="patients") as update:
        studies = find_studies(source, update)
    with console.progress("predict", unit="slices") as update:
        record = run_prediction(place, loaded, config, studies, out, update)
    _show(record)
    console.stage("predict", f"{out}: masks, overlays and {VOLUMES}")


def _show(record: dict[str, Any]) -> None:
    rows = [("patient", "format", "slices", "with tumour", "tumour", "missing", "notes")]
    for patient in record["patients"]:
        ml = patient["tumour_ml"]
        rows.append(
            (
                patient["patient"],
                patient["format"],
                str(patient["slices"]),
                str(patient["tumour_slices"]),
                f"{patient['tumour_voxels']} px" if ml is None else f"{ml:.2f} ml",
                ", ".join(patient["missing"]),
                "; ".join(patient["notes"]),
            )
        )
    model = record["model"]
    console.show_table(f"Tumour by {model['title']}: {model['predicts']}", rows)
