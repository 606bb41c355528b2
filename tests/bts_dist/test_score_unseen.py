"""Whose patients are scored: none that the model saw, and of others in what they differ."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PATIENTS, backwards, pack_phantom

from bts_dist.checkpoint import Progress
from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.model import find_model
from bts_dist.runtime import LocalRuntime
from bts_dist.score import (
    check_unseen,
    leak,
    read_score,
    run_score,
    score_folder,
)
from bts_dist.train import train
from shards.config import NoSplit, StoreConfig
from shards.errors import InputError
from shards.reader import PackedData
from shards.store import LocalStore

STORE = StoreConfig()


@pytest.mark.parametrize("split", ["train", "val"])
def test_patients_the_model_saw_are_refused(config: Config, split: str) -> None:
    data = PackedData(config.data.shards)
    seen = data.manifest.patients[split]
    check_unseen(Progress(patients=seen), data)
    with pytest.raises(InputError, match=r"1 of 2 test patients were trained or chosen on .*first: "):
        check_unseen(Progress(patients=[*seen, data.manifest.patients["test"][1]]), data)


def test_of_slices_that_were_split_every_patient_has_been_seen_and_the_score_says_so(
    config: Config, by_slice: Path, tmp_path: Path
) -> None:
    own = with_overrides(
        config, {"data.shards": str(by_slice), "split": {"kind": "slice"}, "train.epochs": 1}
    )
    run = LocalStore(str(tmp_path / "leaky"), tmp_path / "leaky")
    progress = train(own, LocalRuntime(0, 1, 0, torch.device("cpu")), run, tmp_path / "leaky")
    data = PackedData(str(by_slice))
    tested = data.manifest.patients["test"]
    seen = set(tested) & set(progress.patients)
    assert seen
    _, result = run_score(find_model(run.uri, STORE), own, 1, backwards)
    assert result["leak"].startswith("slices of these patients were trained on: not a result")
    assert f"other slices of {len(seen)} of the {len(tested)} patients" in result["leak"]
    assert read_score(run)["leak"] == result["leak"]
    assert "differs" not in result
    truth = data.test().index
    for row in result["patients"]:
        assert row["slices"] == len(truth.samples_of(row["patient"])) < len(_slices_of(data, row["patient"]))


def _slices_of(data: PackedData, patient: str) -> list[int]:
    readers = (data.training("train"), data.training("val"), data.test())
    return [int(n) for r in readers for n in r.index.slice_number[r.index.samples_of(patient)]]


def test_slices_that_were_split_are_no_licence_for_other_models(
    own: LocalStore, config: Config, by_slice: Path
) -> None:
    data = PackedData(str(by_slice))
    tested = data.manifest.patients["test"]
    # One of the same patients, trained on another data set.
    with pytest.raises(InputError, match="test patients were trained or chosen on"):
        run_score(
            find_model(own.uri, STORE), with_overrides(config, {"data.shards": str(by_slice)}), 1, backwards
        )
    with pytest.raises(InputError, match=f"1 of {len(tested)} test patients were trained or chosen on"):
        check_unseen(Progress(data_id="0" * 16, patients=tested[:1]), data)
    # A stranger's model has seen nothing, so nothing leaks; but what is there are no volumes.
    stranger = Progress(data_id="0" * 16, patients=["AWAY_1"])
    assert leak(stranger, data) is None
    with pytest.raises(InputError, match="volumes have gaps"):
        check_unseen(stranger, data)


def test_a_model_that_leaked_is_scored_elsewhere_as_strictly_as_any(config: Config, by_slice: Path) -> None:
    leaky = Progress(
        data_id=PackedData(str(by_slice)).manifest.data_id,
        patients=PackedData(str(by_slice)).manifest.patients["train"],
    )
    elsewhere = PackedData(config.data.shards)
    assert leak(leaky, elsewhere) is None
    with pytest.raises(InputError, match="test patients were trained or chosen on"):
        check_unseen(leaky, elsewhere)


def test_scores_elsewhere_say_in_what_the_patients_differ(
    own: LocalStore, config: Config, tmp_path: Path
) -> None:
    others = PATIENTS.model_copy(
        update={"patients": 4, "size": 48, "min_slices": 9, "max_slices": 12, "seed": 5}
    )
    elsewhere = pack_phantom(tmp_path, others, NoSplit(), "AWAY")
    _, result = run_score(
        find_model(own.uri, STORE), with_overrides(config, {"data.shards": str(elsewhere)}), 1, backwards
    )
    differs = result["differs"]
    assert differs["unknown"] is None
    training, scored = differs["training"], differs["scored"]
    assert (training["patients"], training["height"]) == (6, 32)
    assert (scored["patients"], scored["height"]) == (4, 48)
    slices = [row["slices"] for row in result["patients"]]
    assert scored["quantities"]["slices"]["mean"] == np.mean(slices)
    pixels = [row["tp"] + row["fn"] for row in result["patients"]]
    assert scored["quantities"]["tumour_pixels"]["median"] == np.median(pixels)
    found = differs["differences"]
    assert found["size"]["large"]
    assert found["slices"]["large"]
    assert found["slices"]["smd"] > 1


def test_a_checkpoint_from_before_there_were_cohorts_is_scored_and_says_nothing_of_its_patients(
    own: LocalStore, config: Config, external: Path
) -> None:
    place = find_model(own.uri, STORE)
    prefix = f"checkpoints/{place.name}"
    state = json.loads(own.get(f"{prefix}/state.json"))
    assert state["progress"].pop("cohort")["patients"] == 6
    own.put(f"{prefix}/state.json", json.dumps(state).encode())
    listed = json.loads(own.get(f"{prefix}/files.json"))
    listed["state.json"] = hashlib.sha256(own.get(f"{prefix}/state.json")).hexdigest()
    own.put(f"{prefix}/files.json", json.dumps(listed).encode())
    _, result = run_score(place, with_overrides(config, {"data.shards": str(external)}), 1, backwards)
    assert "does not say" in result["differs"]["unknown"]
    assert result["differs"]["training"] is None
    assert result["differs"]["scored"]["patients"] == len(result["patients"]) == 3


def test_a_run_does_not_score_what_another_split_trained_on(
    own: LocalStore, config: Config, everyone: Path
) -> None:
    with pytest.raises(InputError, match="8 of 10 test patients were trained or chosen on"):
        run_score(
            find_model(own.uri, STORE), with_overrides(config, {"data.shards": str(everyone)}), 1, backwards
        )
    assert own.list("score") == []


def test_another_data_set_is_scored_under_its_own_name(
    own: LocalStore, config: Config, external: Path
) -> None:
    elsewhere = with_overrides(config, {"data.shards": str(external)})
    location, result = run_score(find_model(own.uri, STORE), elsewhere, 2, backwards)
    data_id = PackedData(str(external)).manifest.data_id
    assert location == f"{own.uri}/{score_folder('home', data_id)}" == f"{own.uri}/score-{data_id}"
    assert len(result["patients"]) == 3
    assert all(p["patient"].startswith("AWAY_") for p in result["patients"])
    assert own.list("score/") == []
