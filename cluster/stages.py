"""The stages of the main job, each skipped when its output exists for the same inputs and config."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from bts_dist import checkpoint, cohort_table
from bts_dist.compose import config_hash, with_overrides
from bts_dist.config import Config
from bts_dist.model import checkpoints_of, find_model, load_model, model_id
from bts_dist.pseudonyms import check_key
from bts_dist.recovery import recoveries
from bts_dist.report import Overlay, RunRecord, write_report
from bts_dist.run import open_run, record_stage, run_uri, stage_record, training_recipe
from bts_dist.score import read_score
from bts_dist.track import read_metrics
from bts_dist.wandb_stages import record_pack, record_score
from cluster import console
from cluster.live_record import LiveRecord
from cluster.pack_job import packed_id, run_pack
from cluster.score_job import run_scoring
from cluster.train_job import final_progress, run_training
from cluster.tune_results import read_trials, short
from shards.config import StoreConfig
from shards.errors import InputError
from shards.manifest import Manifest, find_manifest, load_manifest
from shards.store import MissingObject, ObjectStore, join_uri, open_store
from shards.verify import SourceReport, verify_source

OVERLAYS = 6
"""Worst and best patients pictured in the report where it cannot show them all, each."""


def verify(config: Config) -> SourceReport:
    """Check every file of the source and print all problems in one table.

    Raises:
        InputError: there are errors; warnings alone pass.
    """
    workers = config.pack.workers or os.cpu_count() or 1
    with console.progress("verify", unit="patients") as update:
        report = verify_source(config.data.source, config.store, workers, update)
    if report.problems:
        console.show_table(f"Problems in {config.data.source}", report.table())
    if report.errors:
        raise InputError(
            f"{config.data.source}: {len(report.errors)} errors, {len(report.warnings)} warnings (table above); "
            "mend the errors and run the command again"
        )
    slices = sum(s.num_slices for s in report.scans)
    console.stage(
        "verify",
        f"{config.data.source}: {len(report.scans)} patients, {slices} slices, no errors, "
        f"{len(report.warnings)} warnings",
    )
    return report


def pack(config: Config, report: SourceReport) -> Manifest:
    """Pack a verified source, unless the shards are already there."""
    existing = find_manifest(open_store(config.data.shards, config.store))
    if existing is not None and existing.data_id == packed_id(config, report):
        console.stage("pack", f"up to date: {config.data.shards} ({_counts(existing)})")
        return existing
    with console.progress("pack", unit="slices") as update:
        manifest = run_pack(config, report, lambda done, total, size: update(done, total, num_bytes=size))
    record_pack(config, say)
    console.stage("pack", f"{config.data.shards} ({_counts(manifest)}, data id {manifest.data_id})")
    if manifest.splits_patients:
        console.stage(
            "pack", "split.kind=slice: patients are in several splits, so no score on this set is a result"
        )
    return manifest


def train(config: Config) -> None:
    """Train, resuming an unfinished run, unless the run is finished already."""
    run = open_run(config)
    key = config_hash({**training_recipe(config), "data_id": data_id(config)}, length=16)
    record = stage_record(run, "train")
    if record is not None and record["key"] == key and checkpoint.names(run):
        console.stage("train", f"up to date: {run.uri}, best checkpoint {record['best']}")
        return
    with console.follow_training(LiveRecord(config), "train", config.train.epochs):
        progress = run_training(config, say)
    if config.cluster.runtime == "torchrun" and os.environ["RANK"] != "0":
        return
    progress = final_progress(config)
    best = max(progress.val_dice)
    cost = recoveries(run)
    record_stage(run, "train", key, best=progress.best, val_dice_patient=best, recoveries=cost)
    console.stage(
        "train",
        f"{run.uri}: {progress.epoch} epochs, best val dice/patient {best:.4f} in {progress.best} "
        f"(threshold {_best_threshold(config, progress.best):.1f})",
    )
    if cost:
        down, again = (sum(each[name] for each in cost) for name in ("down_s", "steps_again"))
        console.stage(
            "train",
            f"interrupted {len(cost)} times: {down:.0f} s until training went on again, {again:.0f} steps done twice",
        )


def say(text: str) -> None:
    """Tell people something in passing."""
    console.out.print(f"  {text}")


def model_config(model: str) -> Config:
    """The config a model was trained with, without the cluster of that time."""
    store = StoreConfig()
    config = load_model(find_model(model, store), store, torch.device("cpu")).config
    return with_overrides(config, {"cluster.address": None, "cluster.gpus_per_worker": None})


def score(config: Config, model: str | None = None) -> str:
    """Score the run's best checkpoint, or ``model``, on the held-out test patients; the results' location."""
    place = find_model(model or run_uri(config), config.store)
    run = open_store(place.run, config.store)
    key = config_hash(
        {
            "checkpoint": model_id(place, config.store),
            "data_id": data_id(config),
            "score": config.score.model_dump(mode="json"),
        },
        length=16,
    )
    stage = f"score-{data_id(config)}"
    record = stage_record(run, stage)
    if record is not None and record["key"] == key and exists(run, f"{record['folder']}/score.json"):
        location = join_uri(run.uri, record["folder"])
        console.stage("score", f"up to date: {location}/score.json")
        warn_of_leak(read_score(run, record["folder"]))
        return location
    check_key(config, run)
    with console.progress("score") as update:
        location, result = run_scoring(place, config, update)
    folder = location.rsplit("/", 1)[-1]
    models = [(open_store(each.run, config.store), each.name) for each in checkpoints_of(place, config.store)]
    record_score(config, run, folder, result, models, open_store(config.data.shards, config.store), say)
    record_stage(run, stage, key, folder=folder)
    show_scores(result)
    console.stage("score", f"{location}/score.json and patients.csv")
    return location


def report(run_location: str, config: Config, folder: str = "score") -> str:
    """Write a run's HTML report; its location."""
    run = open_store(run_location, config.store)
    name = run_location.rstrip("/").rsplit("/", 1)[-1]
    try:
        result = read_score(run, folder)
    except MissingObject:
        raise InputError(
            f"{run_location} has no score yet; score it first: bts score --model {run_location}"
        ) from None
    overlays: list[Overlay] = [
        (
            p["patient"],
            result["pictures"][p["patient"]],
            p["dice"],
            run.get(f"{folder}/overlays/{p['patient']}.png"),
        )
        for p in _extremes(result["patients"])
    ]
    shown = {k: v for k, v in result.items() if k not in ("pictures", "config")}
    record = RunRecord(
        name,
        result["config"],
        read_metrics(run, "epoch"),
        shown,
        overlays,
        short(read_trials(run)),
        # A score of an earlier version has none.
        [json.loads(run.get(entry.key)) for entry in run.list(f"{folder}/gallery/")],
    )
    key = "report.html" if folder == "score" else f"{folder}/report.html"
    with tempfile.TemporaryDirectory() as scratch:
        page = write_report(record, Path(scratch) / "report.html")
        run.put(key, page.read_bytes())
    console.stage("report", join_uri(run_location, key))
    return join_uri(run_location, key)


def _extremes(patients: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The patients with the lowest and the highest Dice."""
    ranked = sorted(patients, key=lambda p: (p["dice"], p["patient"]))
    return ranked if len(ranked) <= 2 * OVERLAYS else ranked[:OVERLAYS] + ranked[-OVERLAYS:]


def show_scores(result: dict[str, Any]) -> None:
    """Every aggregation side by side, with its interval and its rule for empty masks; then subgroups, calibration."""
    table = [("metric", "mean", "median", "95 % interval", "unit", "patients", "empty masks")]
    for name, m in result["metrics"].items():
        figures = _figure(m["mean"]), _figure(m["median"]), _interval(m)
        table.append((name, *figures, m["unit"] or "", str(m["n"]), m["rule"]))
    who = "Held-out test patients" if "leak" not in result else "Test slices of patients seen in training"
    how = result.get("predicts") or f"threshold {result['threshold']}"
    console.show_table(f"{who}, {result['checkpoint']}: {how}", table)
    parts = [("subgroup", "dice/patient", "median", "95 % interval", "patients", "which")]
    for kind, groups in result["subgroups"].items():
        for name, g in groups.items():
            figures = _figure(g["mean"]), _figure(g["median"]), _interval(g)
            parts.append((f"{kind} {name}", *figures, str(g["n"]), g["what"]))
    console.show_table("Subgroups", parts)
    for region, found in result["calibration"].items():
        if found is not None:
            ece, brier = (
                f"{_figure(found[name]['mean'])} ({_interval(found[name])})" for name in ("ece", "brier")
            )
            console.out.print(f"Calibration, {region} voxels: expected error {ece}, Brier score {brier}")
    if "differs" in result:
        show_differences(result["differs"])
    warn_of_leak(result)


def show_differences(differs: dict[str, Any]) -> None:
    """The scored patients beside those that the model was trained on."""
    console.show_table(cohort_table.TITLE, [cohort_table.HEADINGS, *cohort_table.lines(differs)])
    console.out.print(
        f"Not compared: {differs['unknown']}" if differs["unknown"] else f"Rule: {differs['rule']}"
    )


def warn_of_leak(result: dict[str, Any]) -> None:
    """Say of a score that is none why it is none."""
    if "leak" in result:
        console.out.print(f"[bold red]LEAK[/bold red]  {result['leak']}")


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _interval(row: dict[str, Any]) -> str:
    return "–" if row["low"] is None else f"{row['low']:.4f} – {row['high']:.4f}"


def data_id(config: Config) -> str:
    return load_manifest(open_store(config.data.shards, config.store)).data_id


def _best_threshold(config: Config, name: str | None) -> float:
    with tempfile.TemporaryDirectory() as scratch:
        assert name is not None
        folder = checkpoint.fetch(open_run(config), name, Path(scratch), checkpoint.FACTS)
        return checkpoint.read_progress(folder).threshold


def exists(run: ObjectStore, key: str) -> bool:
    return any(entry.key == key for entry in run.list(key))


def _counts(manifest: Manifest) -> str:
    return ", ".join(
        f"{split} {len(patients)} patients / {manifest.num_samples(split)} slices"
        for split, patients in manifest.patients.items()
    )
