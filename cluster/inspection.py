"""``bts inspect``: what a packed data set holds, in words and in pictures."""

from pathlib import Path

import numpy as np

from bts_dist.config import Config
from cluster import console
from shards.errors import InputError
from shards.picture import contact_sheet, overlay
from shards.reader import PackedData, SplitReader

TILES = 24
TILE_PX = 256
"""Width that small slices are enlarged to, so that their keys fit below them."""


def inspect(config: Config, output: Path) -> None:
    """Print the manifest of ``data.shards`` and write a contact sheet of training slices with mask outlines."""
    data = PackedData(config.data.shards, config.store)
    manifest = data.manifest
    rows = [("split", "patients", "slices", "shards", "MiB")]
    for split, patients in manifest.patients.items():
        shards = [s for s in manifest.shards if s.split == split]
        size = sum(s.bytes for s in shards) / 2**20
        rows.append(
            (split, str(len(patients)), str(manifest.num_samples(split)), str(len(shards)), f"{size:.1f}")
        )
    console.show_table(f"{config.data.shards}  ({manifest.format}, data id {manifest.data_id})", rows)
    provenance = manifest.provenance
    console.out.print(
        f"  {manifest.height} × {manifest.width} px, images as {manifest.image_suffix}, packed from "
        f"{provenance.source} (fingerprint {provenance.source_fingerprint[:12]}…)"
    )
    # Test patients are opened by scoring alone; a data set without training patients has no sheet.
    reader = data.training("train")
    if len(reader.index) == 0:
        raise InputError(f"{config.data.shards} has no training patients to draw; score it with `bts score`")
    draw_sheet(reader, output)
    console.stage("inspect", f"contact sheet: {output}")


def draw_sheet(reader: SplitReader, output: Path) -> None:
    """Write a sheet of slices evenly spread over patients and tumour sizes."""
    index = reader.index
    with_tumour = np.flatnonzero(index.tumour_pixels > 0)
    chosen = with_tumour[np.linspace(0, len(with_tumour) - 1, min(TILES, len(with_tumour))).astype(int)]
    scale = max(1, TILE_PX // reader.native_size[1])
    tiles = []
    for sample in chosen:
        image, mask = reader.read(int(sample))
        tiles.append((overlay(image, mask, None, scale=scale), index.key[sample]))
    output.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(tiles, columns=6).save(output)
