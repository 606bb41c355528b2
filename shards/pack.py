"""Verified patients to a packed data set.

The plan fixes every byte before any is written, so packing is parallel, can be killed and run again, and gives
the same bytes each time.  Each finished shard leaves a part record; the manifest comes last, conditionally, and
only then is there a data set.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, TypeVar

from shards.config import HoldoutSplit, NoSplit, PackConfig, StoreConfig
from shards.encode import IMAGE_SUFFIX, MASK_SUFFIX, META_SUFFIX, Encoding, encode_image, encode_mask, encode_meta
from shards.errors import InputError
from shards.manifest import (
    FORMAT,
    INDEX,
    MANIFEST,
    Manifest,
    Provenance,
    ShardRecord,
    dump_index,
    dump_manifest,
    find_manifest,
)
from shards.plan import SPLITS, ShardPlan, assign_splits, plan_shards
from shards.source import PatientFiles, Volume, read_volume
from shards.store import AlreadyExists, MissingObject, ObjectStore, open_store
from shards.verify import PatientScan, SourceReport
from shards.writer import ShardWriter

PLAN = "plan.json"
PARTS = "parts/"

Task = TypeVar("Task")
Done = TypeVar("Done")
ParallelMap = Callable[[Callable[[Task], Done], Sequence[Task]], Iterator[Done]]
Progress = Callable[[int, int], None]


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


@dataclass(frozen=True)
class Part:
    """A finished shard: its record and its rows of the index."""

    shard: ShardRecord
    rows: list[dict[str, Any]]


def process_map(workers: int | None) -> ParallelMap[Any, Any]:
    """Run tasks in a process pool, yielding results as they finish."""

    def run(work: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        count = min(workers or os.cpu_count() or 1, len(tasks))
        if count <= 1:
            yield from map(work, tasks)
            return
        with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
            futures = [pool.submit(work, task) for task in tasks]
            try:
                for future in as_completed(futures):
                    yield future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    return run


def data_id(fingerprint: str, split: HoldoutSplit | NoSplit, pack: PackConfig) -> str:
    """Name of the data set that this source, split and packing give."""
    recipe = {
        "format": FORMAT,
        "source": fingerprint,
        "split": split.model_dump(mode="json"),
        "encoding": pack.encoding,
        "samples_per_shard": pack.samples_per_shard,
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def pack(
    report: SourceReport,
    dest: str,
    *,
    source: str,
    split: HoldoutSplit | NoSplit,
    config: PackConfig,
    store: StoreConfig,
    parallel: ParallelMap[ShardTask, Part],
    progress: Progress | None = None,
) -> Manifest:
    """Pack the patients of a source without errors to ``dest`` and return the manifest.

    Shards that an earlier, interrupted run of the same plan finished are kept when their bytes still match.

    Raises:
        InputError: ``dest`` holds, or is being filled with, another data set.
    """
    identity = data_id(report.fingerprint, split, config)
    target = open_store(dest, store)
    existing = find_manifest(target)
    if existing is not None:
        return _same_data(existing, identity, dest)
    _claim(target, identity)

    splits = assign_splits(report.scans, split)
    plans = plan_shards(report.scans, splits, config.samples_per_shard, getattr(split, "seed", 0))
    tasks = [_task(p, report, source, dest, store, config.encoding) for p in plans]
    parts: dict[str, Part] = {}
    for part in parallel(pack_shard, tasks):
        parts[part.shard.name] = part
        if progress is not None:
            progress(sum(p.shard.samples for p in parts.values()), sum(p.num_samples for p in plans))

    index = dump_index([row for p in plans for row in parts[p.name].rows])
    height, width = report.scans[0].shape
    manifest = Manifest(
        data_id=identity,
        height=height,
        width=width,
        image_suffix=IMAGE_SUFFIX[config.encoding],
        patients={s: sorted(p for p, name in splits.items() if name == s) for s in SPLITS},
        shards=[parts[p.name].shard for p in plans],
        index_sha256=hashlib.sha256(index).hexdigest(),
        provenance=Provenance(
            source=source, source_fingerprint=report.fingerprint, pack=config, split=split
        ),
    )
    return _publish(target, manifest, index)


def pack_shard(task: ShardTask) -> Part:
    """Build and store one shard, or take over the one an interrupted run left."""
    target = open_store(task.dest, task.store)
    finished = _finished_part(target, task.plan)
    if finished is not None:
        return finished
    data, rows = build_shard(task)
    shard = ShardRecord(
        name=task.plan.name,
        split=task.plan.split,
        samples=task.plan.num_samples,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    target.put(shard.name, data)
    record = {"shard": shard.model_dump(mode="json"), "rows": rows}
    target.put(_part_key(shard.name), json.dumps(record, sort_keys=True).encode())
    return Part(shard, rows)


def build_shard(task: ShardTask) -> tuple[bytes, list[dict[str, Any]]]:
    """The bytes of one shard and its index rows.  Memory: the shard and one patient's volume."""
    source = open_store(task.source, task.store)
    files = {p.patient: p for p in task.patients}
    scans = {s.patient: s for s in task.scans}
    writer = ShardWriter()
    rows: list[dict[str, Any]] = []
    for segment in task.plan.segments:
        scan = scans[segment.patient]
        volume = read_volume(source, files[segment.patient])
        if volume.digest != scan.digest:
            raise InputError(
                f"{task.source}/{scan.folder} changed while it was being packed; run `bts pack` again "
                "once nothing else writes there"
            )
        for position in range(segment.start, segment.stop):
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
        "mean": [round(v, 4) for v in scan.mean],
        "std": [round(v, 4) for v in scan.std],
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


def _task(
    plan: ShardPlan, report: SourceReport, source: str, dest: str, store: StoreConfig, encoding: Encoding
) -> ShardTask:
    needed = {s.patient for s in plan.segments}
    return ShardTask(
        plan=plan,
        patients=tuple(p for p in report.patients if p.patient in needed),
        scans=tuple(s for s in report.scans if s.patient in needed),
        source=source,
        dest=dest,
        store=store,
        encoding=encoding,
    )


def _same_data(existing: Manifest, identity: str, dest: str) -> Manifest:
    if existing.data_id != identity:
        raise InputError(
            f"{dest} already holds another data set ({existing.data_id}, packed from "
            f"{existing.provenance.source}); this source, split and packing give {identity}. "
            "Choose another prefix with --set data.shards=…, or delete that one"
        )
    return existing


def _claim(target: ObjectStore, identity: str) -> None:
    """Mark the prefix as being filled with this data set; two different packs would mix their shards."""
    claim = json.dumps({"format": FORMAT, "data_id": identity}).encode()
    try:
        target.put(PLAN, claim, if_absent=True)
    except AlreadyExists:
        holder = target.get(PLAN)
        if holder != claim:
            raise InputError(
                f"{target.uri} is half filled with another data set ({holder.decode(errors='replace')[:80]}); "
                "choose another prefix with --set data.shards=…, or delete that one"
            ) from None


def _part_key(shard: str) -> str:
    return PARTS + shard.rsplit("/", 1)[-1].removesuffix(".tar") + ".json"


def _finished_part(target: ObjectStore, plan: ShardPlan) -> Part | None:
    """The part an interrupted run left, if its shard is there byte for byte."""
    try:
        record = json.loads(target.get(_part_key(plan.name)))
        shard = ShardRecord.model_validate(record["shard"])
        data = target.get(plan.name)
    except (MissingObject, json.JSONDecodeError):
        return None
    if hashlib.sha256(data).hexdigest() != shard.sha256 or shard.samples != plan.num_samples:
        return None
    return Part(shard, record["rows"])


def _publish(target: ObjectStore, manifest: Manifest, index: bytes) -> Manifest:
    """Write the index and then, only if nobody else did, the manifest; then drop the scaffolding."""
    target.put(INDEX, index)
    try:
        target.put(MANIFEST, dump_manifest(manifest), if_absent=True)
    except AlreadyExists:
        winner = find_manifest(target)
        assert winner is not None
        return _same_data(winner, manifest.data_id, target.uri)
    for entry in target.list(PARTS):
        target.delete(entry.key)
    target.delete(PLAN)
    return manifest
