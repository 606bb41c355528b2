"""The stage of ``bts export``: a checkpoint becomes files for other programs, and what was found is shown."""

from pathlib import Path

import torch

from bts_dist.compose import load_config
from bts_dist.export import Export, check_free, check_packages, export_model
from bts_dist.model import check_as_validated, find_model, load_model
from bts_dist.model_card import CARD
from cluster import console


def export(model_uri: str, out: Path, files: list[str], overrides: list[str]) -> None:
    """Export a run's best checkpoint, or one checkpoint, to the folder ``out``.

    Without ``files`` the checkpoint's own config says where its data lies.

    Raises:
        InputError: as ``bts_dist.export.export_model`` and ``bts_dist.score.load_model``.
        ParityError: a file predicts something else than scoring does; nothing was written.
    """
    # What is cheap to see comes before anything is loaded.
    check_packages()
    check_free(out)
    config = load_config(files, overrides)
    place = find_model(model_uri, config.store)
    model = load_model(place, config.store, torch.device("cpu"))
    if not files:
        config = load_config([], overrides, model.config)
    check_as_validated(config, model)
    console.stage("export", f"{place.name} of {place.run}; tracing takes about a minute")
    result = export_model(place, model, config, out)
    _show(result)
    console.next_step(f"open {out / CARD}")


def _show(result: Export) -> None:
    headings = (
        "file",
        "largest difference of probability",
        "mask pixels that differ",
        "tumour pixels",
        "all pixels",
    )
    rows: list[tuple[str, ...]] = [headings]
    for name, parity in result.parity.items():
        pixels = (parity.differing_pixels, parity.tumour_pixels, parity.num_pixels)
        rows.append((name, f"{parity.max_difference:.2g}", *map(str, pixels)))
    console.show_table(f"Parity with scoring in float32, on {result.slices}", rows)
    sizes = ", ".join(f"{name} {size / 1024:,.0f} KiB" for name, size in result.sizes.items())
    console.stage("export", f"{result.folder}: {sizes}")
