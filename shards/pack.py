"""Verified patients to a packed data set.

The plan fixes every byte before any is written, so packing is parallel, can be killed and run again, and gives
the same bytes each time.  Each finished shard leaves a part, which the index is joined from; the manifest comes last,
conditionally, and only then is there a data set.  What is held in memory grows with the shards, not the samples.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from shards.build import ShardTask, build_shard, opened
from shards.config import NoSplit, PackConfig, SplitConfig, StoreConfig
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
    dump_manifest,
    find_manifest,
)
from shards.parallel import ParallelMap, process_map
from shards.parts import drop_parts, finished_sha256, put_part, write_index
from shards.plan import SPLITS, ShardPlan, divide, plan_shards
from shards.store import AlreadyExists, MissingObject, ObjectStore, open_store
from shards.verify import SourceReport

PLAN = "plan.json"

Progress = Callable[[int, int, int], None]
"""Is told the samples done, all samples, and the bytes of the shards done."""


def data_id(fingerprint: str, split: SplitConfig, pack: PackConfig) -> str:
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
    split: SplitConfig,
    config: PackConfig,
    store: StoreConfig,
    parallel: ParallelMap[ShardTask, ShardRecord] | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Pack the patients of a source without errors to ``dest`` and return the manifest.

    Shards that an earlier, interrupted run of the same plan finished are kept when their bytes still match.
    ``parallel`` runs the tasks, by default in ``config.workers`` processes.

    Raises:
        InputError: the source has errors, or changed since; or ``dest`` holds, or is being filled with,
            something else, or is a store that does not honour conditional writes.
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

    places = divide(report.scans, split)
    seed = 0 if isinstance(split, NoSplit) else split.seed
    plans = plan_shards(places, config.samples_per_shard, seed)
    tasks = _tasks(plans, report, source, dest, store, config.encoding)
    shards = _build_all(plans, (parallel or process_map(config.workers))(pack_shard, tasks), progress)

    height, width = report.scans[0].shape
    try:
        manifest = Manifest(
            data_id=identity,
            height=height,
            width=width,
            image_suffix=IMAGE_SUFFIX[config.encoding],
            patients={s: sorted(places[s]) for s in SPLITS},
            shards=shards,
            index_sha256=_put_index(target, shards),
            provenance=Provenance(
                source=source,
                source_fingerprint=report.fingerprint,
                # How many packed it leaves no trace, so that any number gives the same bytes.
                pack=config.model_copy(update={"workers": None}),
                split=split,
            ),
        )
        target.put(MANIFEST, dump_manifest(manifest), if_absent=True)
    except (AlreadyExists, MissingObject) as error:
        manifest = _winner(target, identity, error)
    _tidy(target)
    return manifest


def _build_all(
    plans: Sequence[ShardPlan], finished: Iterator[ShardRecord], progress: Progress | None
) -> list[ShardRecord]:
    """The records of all shards in the order of the plan, which they need not be finished in."""
    shards: dict[str, ShardRecord] = {}
    samples, num_bytes, total = 0, 0, sum(p.num_samples for p in plans)
    for shard in finished:
        shards[shard.name] = shard
        samples, num_bytes = samples + shard.samples, num_bytes + shard.bytes
        if progress is not None:
            progress(samples, total, num_bytes)
    return [shards[p.name] for p in plans]


def pack_shard(task: ShardTask) -> ShardRecord:
    """Build and store one shard, or take over the one an interrupted run left."""
    target = opened(task.dest, task.store)
    finished = _finished_shard(target, task.plan)
    if finished is not None:
        return finished
    data, rows = build_shard(task)
    shard = _record(task.plan, data)
    target.put(shard.name, data)
    put_part(target, shard.name, shard.sha256, rows)
    return shard


def _record(plan: ShardPlan, data: bytes) -> ShardRecord:
    return ShardRecord(
        name=plan.name,
        split=plan.split,
        samples=plan.num_samples,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _finished_shard(target: ObjectStore, plan: ShardPlan) -> ShardRecord | None:
    """The shard that an interrupted run left, if it is there byte for byte with its part."""
    sha256 = finished_sha256(target, plan.name)
    if sha256 is None:
        return None
    try:
        shard = _record(plan, target.get(plan.name))
    except MissingObject:
        return None
    return shard if shard.sha256 == sha256 else None


def _tasks(
    plans: Sequence[ShardPlan],
    report: SourceReport,
    source: str,
    dest: str,
    store: StoreConfig,
    encoding: Encoding,
) -> Iterator[ShardTask]:
    """A task for each shard, with its own patients alone."""
    patients = {p.patient: p for p in report.patients}
    scans = {s.patient: s for s in report.scans}
    for plan in plans:
        needed = [s.patient for s in plan.segments]
        yield ShardTask(
            plan=plan,
            patients=tuple(patients[p] for p in needed),
            scans=tuple(scans[p] for p in needed),
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
        target.check_conditional_writes()
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


def _put_index(target: ObjectStore, shards: Sequence[ShardRecord]) -> str:
    """Join the parts to the index and store it; returns its sha256."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, INDEX)
        sha256 = write_index(target, (shard.name for shard in shards), path)
        target.put(INDEX, path)
    return sha256


def _winner(target: ObjectStore, identity: str, error: AlreadyExists | MissingObject) -> Manifest:
    """The manifest of the packer that was faster, and that may have taken the parts away."""
    manifest = find_manifest(target)
    if manifest is None:
        raise InputError(f"{error}, and not by another packer of this data; run `bts pack` again") from error
    return _same_data(manifest, identity, target.uri)


def _tidy(target: ObjectStore) -> None:
    drop_parts(target)
    target.delete(PLAN)
