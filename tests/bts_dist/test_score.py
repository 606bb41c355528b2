"""Scoring opens the test patients once, of models that never saw them, and gives the same bytes however divided."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bucket import Bucket
from conftest import backwards
from packed_set import PackedSet
from safetensors.torch import load_file

from bts_dist import checkpoint
from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.counts import dice
from bts_dist.data import SampleSource
from bts_dist.model import ModelPlace, find_model, load_model
from bts_dist.score import (
    read_score,
    run_score,
    score_patients,
    tasks,
)
from shards.config import StoreConfig
from shards.encode import encode_meta
from shards.errors import InputError
from shards.reader import PackedData
from shards.store import LocalStore, MissingObject

STORE = StoreConfig()


def test_the_result_has_the_same_bytes_however_the_patients_are_divided(
    own: LocalStore, config: Config
) -> None:
    found: list[dict[str, bytes]] = []
    for workers in (1, 2):
        done: list[int] = []
        location, _ = run_score(
            find_model(own.uri, STORE), config, workers, backwards, lambda num, _, done=done: done.append(num)
        )
        assert location == f"{own.uri}/score"
        assert done == [[2], [1, 2]][workers - 1]
        found.append({e.key: own.get(e.key) for e in own.list("score/")})
        for key in found[-1]:
            own.delete(key)
    assert found[0] == found[1]
    assert {"score/score.json", "score/patients.csv"} < found[0].keys()


def test_the_scores_are_those_of_the_test_patients(own: LocalStore, config: Config) -> None:
    place = find_model(own.uri, STORE)
    _, result = run_score(place, config, 1, backwards)
    data = PackedData(config.data.shards)
    assert [p["patient"] for p in result["patients"]] == data.manifest.patients["test"]
    truth = data.test()
    for row in result["patients"]:
        pixels = sum(int(truth.read_mask(int(i)).sum()) for i in truth.index.samples_of(row["patient"]))
        assert row["tp"] + row["fn"] == pixels > 0
    assert result["data"]["slices"] == len(truth.index)
    model = load_model(place, STORE, torch.device("cpu"))
    assert result["threshold"] == model.progress.threshold
    assert result["config"] == model.config.model_dump(mode="json")
    assert read_score(own) == json.loads(json.dumps(result))
    with pytest.raises(MissingObject):
        read_score(own, "score-elsewhere")


def test_the_result_has_every_part(own: LocalStore, config: Config) -> None:
    run_score(find_model(own.uri, STORE), config, 1, backwards)
    result = read_score(own)
    assert {"subgroups", "calibration", "thresholds"} < result.keys()
    slices = PackedData(config.data.shards).manifest.num_samples("test")
    bins = result["calibration"]["all"]["bins"]
    assert sum(bin_["voxels"] for bin_ in bins) == slices * 32 * 32
    assert sum(group["n"] for group in result["subgroups"]["missing"].values()) == 2
    assert result["metrics"]["surface_dice/patient"]["unit"] == "at 2 px"


def test_distances_are_in_millimetres_where_the_shards_say_the_spacing(
    own: LocalStore, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bts_dist.score.predict_patient", _moved_truth)
    _, flat = run_score(find_model(own.uri, STORE), config, 1, backwards)
    data = PackedSet.read(Path(config.data.shards))
    for shard in (name for name in data.shards if "test" in name):
        data.put_members(shard, [_with_spacing(*member) for member in data.members(shard)])
    data.write(tmp_path / "spaced")
    spaced = with_overrides(config, {"data.shards": str(tmp_path / "spaced"), "score.tolerance_mm": 4.0})
    _, result = run_score(find_model(own.uri, STORE), spaced, 2, backwards)
    # All sides are twice as long, and so is the tolerance.
    for name, factor in (("hd95/patient", 2), ("asd/patient", 2), ("surface_dice/patient", 1)):
        assert result["metrics"][name]["mean"] == factor * flat["metrics"][name]["mean"], name
        assert result["metrics"][name]["unit"] == {2: "mm", 1: "at 4 mm"}[factor]
    for before, after in zip(flat["patients"], result["patients"], strict=True):
        assert after["tumour_ml"] == pytest.approx((before["tp"] + before["fn"]) * 8 / 1000)
        assert after["dice"] == before["dice"]


def _moved_truth(_: Any, source: SampleSource, patient: str, **__: Any) -> tuple[Any, Any]:
    truth = np.stack([source.native_mask(int(i)) for i in source.reader.index.samples_of(patient)])
    return np.roll(truth, 3, axis=2).astype(np.float32), truth


def _with_spacing(name: str, data: bytes) -> tuple[str, bytes]:
    if name.endswith(".json"):
        data = encode_meta(json.loads(data) | {"spacing_mm": [2.0, 2.0, 2.0]})
    return name, data


def test_a_checkpoint_is_called_by_its_own_epoch(own: LocalStore, config: Config) -> None:
    for step, epoch in (("step-00000008-a1", 1), ("step-00000016-a1", 2)):
        _, result = run_score(find_model(f"{own.uri}/checkpoints/{step}", STORE), config, 1, backwards)
        assert result["checkpoint"] == f"{step} (epoch {epoch})"


def test_a_run_stands_for_its_best_checkpoint(own: LocalStore, tmp_path: Path) -> None:
    newest = checkpoint.fetch_newest(own, tmp_path / "there", pytest.fail)
    assert newest is not None
    assert find_model(f"{own.uri}/", STORE) == ModelPlace(own.uri, str(checkpoint.read_progress(newest).best))


def test_a_run_may_lie_in_a_folder_called_checkpoints(own: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    moved = own.root.rename(tmp_path / "checkpoints" / "mine")
    assert find_model(str(moved), STORE).run == str(moved)


def test_without_a_whole_checkpoint_there_is_nothing_to_score(own: LocalStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no whole checkpoint"):
        find_model(str(tmp_path / "nowhere"), STORE)
    with pytest.raises(InputError, match="step-00000099-a1 is not a whole checkpoint"):
        load_model(ModelPlace(own.uri, "step-00000099-a1"), STORE, torch.device("cpu"))
    (own.root / "checkpoints" / "step-00000008-a1" / "ema.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match=r"ema\.safetensors does not match its sha256"):
        load_model(ModelPlace(own.uri, "step-00000008-a1"), STORE, torch.device("cpu"))


def test_the_moving_average_is_what_is_scored(own: LocalStore) -> None:
    model = load_model(ModelPlace(own.uri, "step-00000016-a1"), STORE, torch.device("cpu"))
    folder = own.root / "checkpoints" / "step-00000016-a1"
    averaged, last = load_file(folder / "ema.safetensors"), load_file(folder / "model.safetensors")
    weights = model.network.state_dict()
    assert all(torch.equal(weights[name], averaged[name]) for name in weights)
    assert not all(torch.equal(weights[name], last[name]) for name in weights)
    assert not model.network.training


def test_settings_of_the_prediction_come_from_the_checkpoint(own: LocalStore, config: Config) -> None:
    place = find_model(own.uri, STORE)
    _, first = run_score(place, config, 1, backwards)
    other = with_overrides(config, {"model.features": 7, "data.image_size": 16, "train.precision": "bf16"})
    _, second = run_score(place, other, 1, backwards)
    assert first["patients"] == second["patients"]


def test_predicting_another_way_than_in_validation_is_refused(own: LocalStore, config: Config) -> None:
    other = with_overrides(config, {"score.mirror": False})
    with pytest.raises(InputError, match=r"score\.mirror is False, but .* were chosen with True"):
        run_score(find_model(own.uri, STORE), other, 1, backwards)
    assert own.list("score/") == []


def test_a_model_needs_nothing_of_its_optimizer(own: LocalStore, config: Config) -> None:
    for entry in own.list("checkpoints/"):
        if entry.key.endswith("optim.safetensors"):
            own.delete(entry.key)
    _, result = run_score(find_model(own.uri, STORE), config, 1, backwards)
    assert len(result["patients"]) == 2


@pytest.mark.parametrize("cache", ["none", "auto"])
def test_shards_are_kept_on_disk_only_where_they_may_be(
    own: LocalStore, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    monkeypatch.setattr("shards.reader.open_store", lambda uri, _: Bucket(Path(uri)))
    places = {"store.cache_dir": str(tmp_path / "cache"), "data.cache": cache}
    run_score(find_model(own.uri, STORE), with_overrides(config, places), 1, backwards)
    assert any((tmp_path / "cache").rglob("*.tar")) is (cache == "auto")


def test_a_task_without_a_gpu_takes_none_though_torch_sees_one(
    own: LocalStore, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # any use of it fails here
    place = find_model(own.uri, STORE)
    _, result = run_score(place, with_overrides(config, {"cluster.gpus_per_worker": 0}), 1, backwards)
    assert len(result["patients"]) == 2


def test_patients_are_dealt_out_to_no_more_tasks_than_there_are(config: Config) -> None:
    place = ModelPlace("run", "step")
    dealt = [task.patients for task in tasks(place, config, ["a", "b", "c"], 2)]
    assert dealt == [("a", "c"), ("b",)]
    assert len(tasks(place, config, ["a", "b", "c"], 9)) == 3


def test_an_output_that_is_not_finite_is_no_score(
    own: LocalStore, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> tuple[Any, Any]:
        probability = np.zeros((3, 32, 32), np.float32)
        probability[1, 4, 5], probability[2] = np.inf, np.nan
        return probability, np.zeros((3, 32, 32), np.uint8)

    monkeypatch.setattr("bts_dist.score.predict_patient", broken)
    patient = PackedData(config.data.shards).manifest.patients["test"][0]
    task = tasks(find_model(own.uri, STORE), config, [patient], 1)[0]
    with pytest.raises(InputError, match=rf"^{patient}: the model's output is not finite in 2 of 3 slices"):
        score_patients(task)


def test_the_picture_is_of_the_slice_with_most_to_show(own: LocalStore, config: Config) -> None:
    patient = PackedData(config.data.shards).manifest.patients["test"][0]
    scored = score_patients(tasks(find_model(own.uri, STORE), config, [patient], 1)[0])[0]
    counts = scored.evaluation.score.counts
    most = np.maximum(counts[:, 0] + counts[:, 2], counts[:, 0] + counts[:, 1])
    assert most[scored.slice_number - 1] == most.max()
    assert scored.picture.startswith(b"\x89PNG")
    assert dice(counts.sum(axis=0)) == scored.evaluation.score.dice


def test_every_slice_is_left_for_the_report(own: LocalStore, config: Config) -> None:
    _, result = run_score(find_model(own.uri, STORE), config, 1, backwards)
    truth = PackedData(config.data.shards).test()
    kept = {entry.key: json.loads(own.get(entry.key)) for entry in own.list("score/gallery/")}
    assert list(kept) == [f"score/gallery/{row['patient']}.json" for row in result["patients"]]
    for row, patient in zip(result["patients"], kept.values(), strict=True):
        ids = truth.index.samples_of(row["patient"])
        assert [each["slice"] for each in patient["slices"]] == truth.index.slice_number[ids].tolist()
        pixels = [int(truth.read_mask(int(i)).sum()) for i in ids]
        assert [sum(each["truth"][1::2]) for each in patient["slices"]] == pixels
        for name in ("tp", "fp", "fn"):
            assert sum(each[name] for each in patient["slices"]) == row[name]
