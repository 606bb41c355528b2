"""Choosing on the validation patients how a trained model predicts.  Patients are dealt out as in scoring."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from bts_dist import checkpoint, memory
from bts_dist.choices import Axes, count_ways, decide, make_axes
from bts_dist.config import Config
from bts_dist.counts import Counts
from bts_dist.data import SampleSource
from bts_dist.estimates import draw
from bts_dist.inference import Inference, Member, write_inference
from bts_dist.model import (
    ModelPlace,
    check_alike,
    check_mirror,
    checkpoint_id,
    find_model,
    load_checkpoint,
)
from bts_dist.predict import patient_logits, truth_of
from bts_dist.runtime import pick_device
from shards.errors import InputError
from shards.reader import PackedData
from shards.store import open_store


@dataclass(frozen=True)
class ChoiceTask:
    """Validation patients for one worker, anywhere in the cluster."""

    members: tuple[ModelPlace, ...]
    config: str
    """As JSON."""
    axes: Axes
    patients: tuple[str, ...]


Counted = list[tuple[str, Counts]]
Parallel = Callable[[Callable[[ChoiceTask], Counted], Sequence[ChoiceTask]], Iterator[Counted]]
"""Does tasks anywhere, and gives their results as they end."""


def find_members(place: ModelPlace, config: Config) -> list[ModelPlace]:
    """The checkpoints that may be averaged, the model's own first.

    Then come the run's other whole epochs that are still kept, newest first, then the best ones of ``score.ensemble``.

    Raises:
        InputError: a run of ``score.ensemble`` has no checkpoint, or saw other data or another network.
    """
    if "ensemble" not in config.score.choices:
        return [place]
    kept = [
        ModelPlace(place.run, name)
        for name in checkpoint.names(open_store(place.run, config.store))
        if name != place.name
    ]
    epochs = [each for each in kept if _ends_an_epoch(each, config)]
    own = load_checkpoint(place, config.store, torch.device("cpu"))
    return [place, *epochs, *find_further(config, own.config, own.progress.data_id)]


def find_further(config: Config, trained: Config, data_id: str) -> list[ModelPlace]:
    """The best checkpoints of ``score.ensemble``, for a model that was, or will be, trained on a data set.

    Raises:
        InputError: one has no checkpoint, or saw other data or another network.
    """
    further = [find_model(uri, config.store) for uri in config.score.ensemble]
    for each in further:
        other = load_checkpoint(each, config.store, torch.device("cpu"))
        check_alike(trained, [other])
        if other.progress.data_id != data_id:
            raise InputError(
                f"score.ensemble: {each.run} was trained on data set {other.progress.data_id}, this run on "
                f"{data_id}; name runs of the same data set, whose validation patients are the same"
            )
    return further


def run_choosing(
    place: ModelPlace,
    config: Config,
    workers: int,
    parallel: Parallel,
    progress: Callable[[int, int], None] | None = None,
) -> Inference:
    """Choose for the checkpoint at ``place``, record it beside the checkpoint and give it.

    Raises:
        InputError: as ``find_members``; or ``data.shards`` is not the data set of the training.
    """
    model = load_checkpoint(place, config.store, torch.device("cpu"))
    check_mirror(config, model)
    own = model.progress
    data = PackedData(config.data.shards, config.store)
    if data.manifest.data_id != own.data_id:
        raise InputError(
            f"{config.data.shards} is data set {data.manifest.data_id}, and {place.uri} was trained on {own.data_id}; "
            "its validation patients must choose how it predicts: name that data set"
        )
    members = find_members(place, config)
    axes = make_axes(config.score, len(members), own.threshold)
    if data.manifest.splits_patients:
        axes = replace(axes, components=("all",))  # there are gaps between the slices
    patients = data.training("val").index.patients()
    parts = num_tasks(len(patients), workers)
    dealt = [tuple(patients[i::parts]) for i in range(parts)]
    counted: dict[str, Counts] = {}
    for part in parallel(
        count_patients,
        [ChoiceTask(tuple(members), config.model_dump_json(), axes, each) for each in dealt],
    ):
        counted |= dict(part)
        if progress is not None:
            progress(len(counted), len(patients))
    draws = draw(len(patients), config.score.bootstrap, config.score.seed)
    found, tried, num_members = decide([counted[patient] for patient in patients], axes, draws)
    found = replace(
        found,
        members=tuple(
            Member(_name(member, place), checkpoint_id(member, config.store))
            for member in members[1:num_members]
        ),
        chosen={**tried, "choices": list(config.score.choices), "ensemble": list(config.score.ensemble)},
    )
    write_inference(
        open_store(place.run, config.store), place.name, checkpoint_id(place, config.store), found
    )
    return found


def num_tasks(num_patients: int, workers: int) -> int:
    """Parts of about two patients, who are predicted by every checkpoint."""
    return min(max(workers, num_patients // 2), num_patients)


def count_patients(task: ChoiceTask) -> Counted:
    """Count a task's patients in every way, on one CPU thread, as scoring does."""
    config = Config.model_validate_json(task.config)
    device = pick_device(0, config.cluster.gpus_per_worker)
    models = [load_checkpoint(place, config.store, device) for place in task.members]
    own = models[0].config
    data = config.data.model_copy(update={"image_size": own.data.image_size, "cache": "none"})
    reader = PackedData(config.data.shards, config.store, config.data).training("val")
    source = SampleSource(reader, data, device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found: Counted = []
        for patient in task.patients:
            with memory.explained(memory.in_scoring, config, own, models[0].device, patient, source.sides):
                logits = [
                    patient_logits(
                        model.network,
                        source,
                        patient,
                        device=model.device,
                        batch=config.score.batch,
                        precision=own.train.precision,
                        mirror=True in task.axes.mirror,
                    )
                    for model in models
                ]
            _check_finite(patient, task.members, logits)
            found.append((patient, count_ways(logits, truth_of(source, patient) > 0, task.axes)))
        return found
    finally:
        torch.set_num_threads(threads)
        source.close()


def _check_finite(patient: str, members: Sequence[ModelPlace], logits: Sequence[Any]) -> None:
    for place, own in zip(members, logits, strict=True):
        if not np.isfinite(own.numpy()).all():
            raise InputError(
                f"{patient}: the output of {place.uri} is not finite; leave it out of score.ensemble, or leave "
                "ensemble out of score.choices; the model's own checkpoint is of no use then, train again"
            )


def _ends_an_epoch(place: ModelPlace, config: Config) -> bool:
    """Whether a checkpoint is whole and its weights are those that a validation saw."""
    try:
        progress = load_checkpoint(place, config.store, torch.device("cpu")).progress
    except InputError:
        return False  # what a killed upload has left, which training passes over as well
    return progress.epoch > 0 and progress.loss_sum == 0


def _name(member: ModelPlace, place: ModelPlace) -> str:
    return f"{checkpoint.FOLDER}/{member.name}" if member.run == place.run else member.uri
