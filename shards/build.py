"""One shard: patients' files to the bytes of a tar, and to its rows of the index."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from shards.config import StoreConfig
from shards.encode import (
    IMAGE_SUFFIX,
    MASK_SUFFIX,
    META_SUFFIX,
    Encoding,
    encode_image,
    encode_mask,
    encode_meta,
)
from shards.errors import InputError
from shards.layout import PatientFiles
from shards.parallel import ahead
from shards.plan import ShardPlan
from shards.source import Volume, read_volume
from shards.store import ObjectStore, open_store
from shards.verify import PatientScan, recorded
from shards.writer import ShardWriter


@dataclass(frozen=True)
class ShardTask:
    """All a worker needs to build one shard, in any process on any node."""

    plan: ShardPlan
    patients: tuple[PatientFiles, ...]
    scans: tuple[PatientScan, ...]
    source: str
    dest: str
    store: StoreConfig
    encoding: Encoding


@lru_cache(maxsize=4)
def opened(uri: str, config: StoreConfig) -> ObjectStore:
    """One store a process: an S3 client takes longer to make than many slices to pack."""
    return open_store(uri, config)


def build_shard(task: ShardTask) -> tuple[bytes, list[dict[str, Any]]]:
    """The bytes of one shard and its index rows.

    Memory: the shard and two patients' volumes, for the next is read while one is encoded.

    Raises:
        InputError: a patient's files are not those that were scanned.
    """
    source = opened(task.source, task.store)
    files = {p.patient: p for p in task.patients}
    scans = {s.patient: s for s in task.scans}
    writer = ShardWriter()
    rows: list[dict[str, Any]] = []
    volumes = ahead(lambda segment: read_volume(source, files[segment.patient]), task.plan.segments)
    for segment, volume in zip(task.plan.segments, volumes, strict=True):
        scan = scans[segment.patient]
        if volume.digest != scan.digest:
            raise InputError(
                f"{task.source}/{scan.folder} changed while it was being packed; run `bts pack` again "
                "once nothing else writes there"
            )
        for position in segment.positions:
            rows.append(_add_sample(writer, task, files[segment.patient], scan, volume, position))
    return writer.finish(), rows


def _add_sample(
    writer: ShardWriter,
    task: ShardTask,
    files: PatientFiles,
    scan: PatientScan,
    volume: Volume,
    position: int,
) -> dict[str, Any]:
    number = files.slices[position].number
    key = f"{scan.patient}_{number:04d}"
    meta: dict[str, Any] = {
        "patient": scan.patient,
        "slice": number,
        "num_slices": scan.num_slices,
        "institution": scan.institution,
        "tumour_pixels": scan.tumour_pixels[position],
        "missing": list(scan.missing),
        "mean": recorded(scan.mean),
        "std": recorded(scan.std),
    }
    image = encode_image(volume.image_NHWC[position], task.encoding)
    image_at = writer.add(f"{key}.{IMAGE_SUFFIX[task.encoding]}", image)
    mask_at = writer.add(f"{key}.{MASK_SUFFIX}", encode_mask(volume.mask_NHW[position]))
    meta_at = writer.add(f"{key}.{META_SUFFIX}", encode_meta(meta))
    row: dict[str, Any] = {
        "key": key,
        "split": task.plan.split,
        "shard": task.plan.name,
        **{k: meta[k] for k in ("patient", "institution", "slice", "num_slices", "tumour_pixels")},
    }
    for name, at in (("image", image_at), ("mask", mask_at), ("meta", meta_at)):
        row |= {f"{name}_offset": at.offset, f"{name}_size": at.size}
    for channel in range(3):
        row |= {f"mean_{channel}": meta["mean"][channel], f"std_{channel}": meta["std"][channel]}
    return row
