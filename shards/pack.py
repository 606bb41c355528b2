"""Verified patients to a packed data set.

The plan fixes every byte before any is written, so packing is parallel, can be killed and run again, and gives
the same bytes each time.  Each finished shard leaves a part record; the manifest comes last, conditionally, and
only then is there a data set.
"""

import hashlib
import json
from collections.abc import Callable

from pydantic import ValidationError

from shards.build import Part, ShardTask, build_shard
from shards.config import HoldoutSplit, NoSplit, PackConfig, StoreConfig
from shards.encode import IMAGE_SUFFIX, Encoding
from shards.errors import InputError
from shards.manifest import (
    FORMAT,
    INDEX,
    MANIFEST,
    SHARDS,
    Manifest,
    Provenance,
    ShardRecord,
    dump_index,
    dump_manifest,
    find_manifest,
)
from shards.parallel import ParallelMap, process_map
from shards.plan import SPLITS, ShardPlan, assign_splits, plan_shards
from shards.store import AlreadyExists, MissingObject, ObjectStore, open_store
from shards.verify import SourceReport

PLAN = "plan.json"
PARTS = "parts/"

Progress = Callable[[int, int], None]


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
    parallel: ParallelMap[ShardTask, Part] | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Pack the patients of a source without errors to ``dest`` and return the manifest.

    Shards that an earlier, interrupted run of the same plan finished are kept when their bytes still match.
    ``parallel`` runs the tasks, by default in ``config.workers`` processes; ``progress`` gets the samples done
    and all.

    Raises:
        InputError: the source has errors, or changed since; or ``dest`` holds, or is being filled with,
            something else.
    """
    if report.errors:
        first = report.errors[0]
        raise InputError(
            f"{source} cannot be packed: {first.file} {first.what}; {first.remedy} "
            f"({len(report.errors)} errors in all, `bts verify` lists them)"
        )
    identity = data_id(report.fingerprint, split, config)
    target = open_store(dest, store)
    finished = _claim(target, identity)
    if finished is not None:
        return finished

    splits = assign_splits(report.scans, split)
    seed = split.seed if isinstance(split, HoldoutSplit) else 0
    plans = plan_shards(report.scans, splits, config.samples_per_shard, seed)
    tasks = [_task(p, report, source, dest, store, config.encoding) for p in plans]
    parts: dict[str, Part] = {}
    done, total = 0, sum(p.num_samples for p in plans)
    for part in (parallel or process_map(config.workers))(pack_shard, tasks):
        parts[part.shard.name] = part
        done += part.shard.samples
        if progress is not None:
            progress(done, total)

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
            source=source,
            source_fingerprint=report.fingerprint,
            # How many packed it leaves no trace, so that any number gives the same bytes.
            pack=config.model_copy(update={"workers": None}),
            split=split,
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
    part = Part(shard=shard, rows=rows)
    target.put(_part_key(shard.name), part.model_dump_json().encode())
    return part


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


def _claim(target: ObjectStore, identity: str) -> Manifest | None:
    """Mark the prefix as being filled with this data set, or return the manifest of the finished one.

    Two different packs would mix their shards.  A claim comes before the first shard and goes after the manifest
    has come, so shards with neither are nobody's, and who holds the claim and then sees no manifest may write.
    """
    claim = json.dumps({"format": FORMAT, "data_id": identity}).encode()
    shards = target.list(SHARDS)
    holder = _holder(target)
    if holder is None and find_manifest(target) is None:
        if shards:
            raise InputError(
                f"{target.uri} holds {shards[0].key} but no {MANIFEST}; choose another prefix with "
                "--set data.shards=…, or delete that one"
            )
        holder = _put_claim(target, claim)
    existing = find_manifest(target)
    if existing is not None:
        if holder == claim:  # our own, or left by a run that was killed between manifest and tidying up
            _tidy(target)
        return _same_data(existing, identity, target.uri)
    if holder != claim:
        raise InputError(
            f"{target.uri} is half filled with another data set ({(holder or b'?').decode(errors='replace')[:80]}); "
            "choose another prefix with --set data.shards=…, or delete that one"
        )
    return None


def _holder(target: ObjectStore) -> bytes | None:
    try:
        return target.get(PLAN)
    except MissingObject:
        return None


def _put_claim(target: ObjectStore, claim: bytes) -> bytes | None:
    """Whose claim there is now."""
    try:
        target.put(PLAN, claim, if_absent=True)
    except AlreadyExists:
        return _holder(target)
    return claim


def _same_data(existing: Manifest, identity: str, dest: str) -> Manifest:
    if existing.data_id != identity:
        raise InputError(
            f"{dest} already holds another data set ({existing.data_id}, packed from "
            f"{existing.provenance.source}); this source, split and packing give {identity}. "
            "Choose another prefix with --set data.shards=…, or delete that one"
        )
    return existing


def _part_key(shard: str) -> str:
    return PARTS + shard.rsplit("/", 1)[-1].removesuffix(".tar") + ".json"


def _finished_part(target: ObjectStore, plan: ShardPlan) -> Part | None:
    """The part an interrupted run left, if its shard is there byte for byte."""
    try:
        part = Part.model_validate_json(target.get(_part_key(plan.name)))
        data = target.get(plan.name)
    except (MissingObject, ValidationError):
        return None
    whole = hashlib.sha256(data).hexdigest() == part.shard.sha256
    return part if whole and len(part.rows) == plan.num_samples else None


def _publish(target: ObjectStore, manifest: Manifest, index: bytes) -> Manifest:
    """Write the index and then, only if nobody else did, the manifest; then drop the scaffolding."""
    target.put(INDEX, index)
    try:
        target.put(MANIFEST, dump_manifest(manifest), if_absent=True)
    except AlreadyExists:
        winner = find_manifest(target)
        assert winner is not None
        manifest = _same_data(winner, manifest.data_id, target.uri)
    _tidy(target)
    return manifest


def _tidy(target: ObjectStore) -> None:
    for entry in target.list(PARTS):
        target.delete(entry.key)
    target.delete(PLAN)
