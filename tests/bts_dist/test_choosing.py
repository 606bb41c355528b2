"""Choosing for a trained model: what is recorded is what scoring, prediction and the loaded model then do."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import backwards
from model_run import NAME, THRESHOLD, fresh_run

from bts_dist import checkpoint, inference
from bts_dist.choosing import find_members, run_choosing
from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.counts import count, dice
from bts_dist.data import SampleSource
from bts_dist.ensemble import Ensemble, num_networks
from bts_dist.inference import Inference, Member, read_inference, write_inference
from bts_dist.model import (
    FOLDS,
    ModelPlace,
    check_as_validated,
    checkpoint_id,
    checkpoints_of,
    find_model,
    load_checkpoint,
    load_model,
    model_id,
    title,
)
from bts_dist.predict import predict_patient
from bts_dist.runtime import LocalRuntime
from bts_dist.score import run_score
from bts_dist.train import train
from shards.config import StoreConfig
from shards.errors import InputError
from shards.reader import PackedData
from shards.store import LocalStore

STORE = StoreConfig()
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(config: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two runs of two epochs on the phantom that differ in their seed."""
    root = tmp_path_factory.mktemp("trained")
    for seed in (0, 1):
        run = LocalStore(str(root / str(seed)), root / str(seed))
        own = with_overrides(config, {"train.seed": seed})
        train(own, LocalRuntime(0, 1, 0, CPU), run, root / str(seed))
    return str(root / "0"), str(root / "1")


@pytest.fixture
def run(trained: tuple[str, str], tmp_path: Path) -> str:
    """A copy of the first run that a test may change."""
    return str(shutil.copytree(trained[0], tmp_path / "run"))


def store_of(run: str) -> LocalStore:
    return LocalStore(run, Path(run))


def val_dice(run: str, config: Config) -> float:
    """``dice/patient`` of the validation patients when they are predicted as the loaded model says."""
    model = load_model(find_model(run, STORE), STORE, CPU)
    reader = PackedData(config.data.shards).training("val")
    source = SampleSource(reader, config.data)
    found = []
    for patient in reader.index.patients():
        probability, truth = predict_patient(
            model.network,
            source,
            patient,
            device=CPU,
            batch=32,
            precision="fp32",
            mirror=model.inference.mirror,
        )
        counts = count(model.inference.mask(probability), truth > 0).sum(axis=0)
        found.append(float(dice(counts)))
    source.close()
    return float(np.mean(found))


def test_what_is_recorded_is_what_the_model_then_does(
    run: str, trained: tuple[str, str], config: Config
) -> None:
    config = with_overrides(config, {"score.ensemble": [trained[1]]})
    place = find_model(run, STORE)
    before = model_id(place, STORE)
    seen: list[tuple[int, int]] = []
    found = run_choosing(place, config, 2, backwards, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (2, 2)
    assert found.chosen is not None
    assert [row["choice"] for row in found.chosen["rows"]] == [
        "mirror",
        "ensemble",
        "threshold",
        "components",
    ]
    model = load_model(place, STORE, CPU)
    assert model.inference == found
    assert model.inference.chosen == found.chosen
    assert num_networks(model.network) == len(found.members) + 1
    assert val_dice(run, config) == pytest.approx(found.chosen["dice/patient"], abs=1e-6)
    assert model_id(place, STORE) != before


def test_workers_and_their_order_change_nothing(run: str, config: Config) -> None:
    place, records = find_model(run, STORE), []
    for workers, parallel in ((1, map), (2, backwards)):
        run_choosing(place, config, workers, parallel)
        records.append(inference.inference_bytes(store_of(run), place.name))
    assert records[0] == records[1]


@pytest.mark.parametrize("cache", ["none", "disk"])
def test_shards_are_read_as_the_config_says(
    run: str, config: Config, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    seen = []
    init = PackedData.__init__

    def opened(self: PackedData, uri: str, *rest: Any) -> None:
        seen.append(rest)
        init(self, uri, *rest)

    monkeypatch.setattr(PackedData, "__init__", opened)
    config = with_overrides(config, {"data.cache": cache})
    run_choosing(find_model(run, STORE), config, 1, map)
    tasks = [rest[1].cache for rest in seen if len(rest) == 2]
    assert tasks == [cache] * len(tasks)
    assert tasks


def test_a_task_without_a_gpu_takes_none_though_torch_sees_one(
    run: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # any use of it fails here
    config = with_overrides(config, {"cluster.gpus_per_worker": 0})
    assert run_choosing(find_model(run, STORE), config, 1, map).chosen is not None


def test_members_are_the_runs_epochs_and_then_those_named(
    run: str, trained: tuple[str, str], config: Config
) -> None:
    config = with_overrides(config, {"score.ensemble": [trained[1]]})
    place = find_model(run, STORE)
    members = find_members(place, config)
    assert members[0] == place
    assert {m.name for m in members if m.run == run} == {"step-00000008-a1", "step-00000016-a1"}
    shutil.copytree(Path(run) / "checkpoints" / place.name, Path(run) / "checkpoints" / "step-00000020-a1")
    assert find_members(place, config)[1].name == "step-00000020-a1"  # the newest
    assert members[-1] == find_model(trained[1], STORE)
    alone = with_overrides(config, {"score.choices": ["threshold"]})
    assert find_members(place, alone) == [place]


def test_weights_of_no_whole_epoch_are_no_members(run: str, config: Config) -> None:
    fresh = fresh_run(Path(run).parent / "other", config)
    shutil.copytree(Path(fresh) / "checkpoints" / NAME, Path(run) / "checkpoints" / "step-00000003-a1")
    names = [m.name for m in find_members(find_model(run, STORE), config)]
    assert "step-00000003-a1" in names
    _rewrite(Path(run) / "checkpoints" / "step-00000003-a1", loss_sum=0.5)
    assert "step-00000003-a1" not in [m.name for m in find_members(find_model(run, STORE), config)]


def _rewrite(folder: Path, **progress: Any) -> None:
    """Change a checkpoint's progress, and its list of files with it."""
    state = json.loads((folder / "state.json").read_text())
    state["progress"] |= progress
    (folder / "state.json").write_text(json.dumps(state))
    files = json.loads((folder / "files.json").read_text())
    files["state.json"] = hashlib.sha256((folder / "state.json").read_bytes()).hexdigest()
    (folder / "files.json").write_text(json.dumps(files))


def test_an_ensemble_of_other_data_or_another_network_is_refused(
    run: str, config: Config, tmp_path: Path
) -> None:
    place = find_model(run, STORE)
    elsewhere = with_overrides(config, {"score.ensemble": [fresh_run(tmp_path / "a", config)]})
    with pytest.raises(InputError, match="was trained on data set none"):
        find_members(place, elsewhere)
    wider = fresh_run(tmp_path / "b", with_overrides(config, {"model.features": 6}))
    with pytest.raises(InputError, match="must share model"):
        find_members(place, with_overrides(config, {"score.ensemble": [wider]}))


def test_patients_of_another_data_set_choose_nothing(run: str, config: Config, everyone: Path) -> None:
    with pytest.raises(InputError, match="its validation patients must choose"):
        run_choosing(find_model(run, STORE), with_overrides(config, {"data.shards": str(everyone)}), 1, map)
    assert inference.inference_bytes(store_of(run), find_model(run, STORE).name) == b""


def test_a_model_without_numbers_chooses_nothing(config: Config, tmp_path: Path) -> None:
    data_id = PackedData(config.data.shards).manifest.data_id
    broken = fresh_run(tmp_path / "run", config, broken=True)
    _rewrite(Path(broken) / "checkpoints" / NAME, data_id=data_id)
    with pytest.raises(InputError, match="is not finite"):
        run_choosing(find_model(broken, STORE), config, 1, map)


def member_of(run: str, name: str) -> Member:
    return Member(f"checkpoints/{name}", checkpoint_id(ModelPlace(run, name), STORE))


def choose_by_hand(run: str, found: Inference, **settings: Any) -> ModelPlace:
    place = find_model(run, STORE)
    chosen = {"rows": [], "choices": [], "ensemble": [], **settings}
    write_inference(store_of(run), place.name, checkpoint_id(place, STORE), replace(found, chosen=chosen))
    return place


def test_scoring_does_as_chosen(run: str, config: Config) -> None:
    other = next(n for n in ("step-00000008-a1", "step-00000016-a1") if n != find_model(run, STORE).name)
    chosen = Inference(0.4, False, "largest", (member_of(run, other),))
    place = choose_by_hand(run, chosen, choices=["components"])
    config = with_overrides(config, {"score.choices": ["components"]})
    _, result = run_score(place, config, 1, map)
    assert result["threshold"] == 0.4
    assert result["checkpoint"].endswith("and 1 more")
    assert result["inference"]["components"] == "largest"
    model = load_model(place, STORE, CPU)
    assert checkpoints_of(place, STORE) == [place, ModelPlace(run, other)]
    assert isinstance(model.network, Ensemble)
    reader = PackedData(config.data.shards).test()
    source = SampleSource(reader, config.data)
    for row in result["patients"]:
        probability, truth = predict_patient(
            model.network, source, row["patient"], device=CPU, batch=32, precision="fp32", mirror=False
        )
        wanted = count(chosen.mask(probability), truth > 0).sum(axis=0).tolist()
        assert [row["tp"], row["fp"], row["fn"]] == wanted
    source.close()


def test_scoring_with_other_settings_than_chosen_is_refused(run: str, config: Config) -> None:
    model = load_model(choose_by_hand(run, Inference(0.4, False), choices=["threshold"]), STORE, CPU)
    with pytest.raises(InputError, match=r"score\.choices is \[mirror, .* chosen with \[threshold\]"):
        check_as_validated(config, model)
    same = with_overrides(config, {"score.choices": ["threshold"]})
    check_as_validated(same, model)
    with pytest.raises(InputError, match=r"score\.ensemble is \[.*elsewhere\]"):
        check_as_validated(with_overrides(same, {"score.ensemble": ["elsewhere"]}), model)


def test_a_record_of_another_checkpoint_or_a_damaged_one_is_refused(run: str) -> None:
    place = choose_by_hand(run, Inference(0.4, False))
    with pytest.raises(InputError, match=f"{place.name}.json is of another checkpoint"):
        read_inference(store_of(run), place.name, "0" * 64)
    key = f"{inference.FOLDER}/{place.name}.json"
    record = json.loads(store_of(run).get(key))
    lacking = [{k: v for k, v in record.items() if k != name} for name in ("mirror", "rows", "ensemble")]
    odd = [record | {"components": "foo"}, record | {"members": ["x"]}]
    for damaged in (b"{", b"[]", *(json.dumps(each).encode() for each in (*lacking, *odd))):
        store_of(run).put(key, damaged)
        with pytest.raises(InputError, match=f"{place.name}.json is damaged"):
            load_model(place, STORE, CPU)


def test_a_member_that_is_gone_is_named(run: str) -> None:
    place = choose_by_hand(run, Inference(0.4, False, "all", (Member("checkpoints/step-00000099-a1", "0"),)))
    with pytest.raises(
        InputError, match=r"step-00000099-a1 is not a whole checkpoint any more, .* chooses anew"
    ):
        load_model(place, STORE, CPU)


def test_a_member_that_was_trained_anew_is_refused(
    run: str, trained: tuple[str, str], config: Config
) -> None:
    other = find_model(trained[1], STORE)
    place = choose_by_hand(run, Inference(0.4, False, "all", (Member(other.uri, "0" * 64),)))
    with pytest.raises(InputError, match="is another checkpoint than the one"):
        load_model(place, STORE, CPU)


def test_what_a_killed_upload_has_left_is_passed_over(run: str, config: Config) -> None:
    place = find_model(run, STORE)
    torn = shutil.copytree(
        Path(run) / "checkpoints" / place.name, Path(run) / "checkpoints" / "step-00000030-a1"
    )
    (torn / "files.json").unlink()
    assert "step-00000030-a1" not in [each.name for each in find_members(place, config)]


def test_training_on_spares_the_members_of_what_was_chosen(run: str) -> None:
    store = store_of(run)
    best = find_model(run, STORE).name
    other = next(name for name in checkpoint.names(store) if name != best)
    choose_by_hand(run, Inference(0.4, False, "all", (member_of(run, other),)))
    for step in (24, 32):
        name = f"step-{step:08d}-a1"
        shutil.copytree(Path(run) / "checkpoints" / best, Path(run) / "checkpoints" / name)
    checkpoint.prune(store, "step-00000032-a1", 1)
    assert set(checkpoint.names(store)) == {"step-00000032-a1", best, other}


def test_another_way_of_validating_is_refused_before_anything_is_chosen(run: str, config: Config) -> None:
    with pytest.raises(InputError, match=r"score\.mirror is False"):
        run_choosing(find_model(run, STORE), with_overrides(config, {"score.mirror": False}), 1, map)
    assert inference.inference_bytes(store_of(run), find_model(run, STORE).name) == b""


def test_the_folds_together_are_a_model(config: Config, tmp_path: Path) -> None:
    config = with_overrides(config, {"split.folds": 3})
    for fold, patients in enumerate((("A", "B"), ("B", "C"), ("C", "A"))):
        folder = tmp_path / "run" / FOLDS / f"fold-{fold}"
        fresh_run(folder, config, patients=patients)
    choose_by_hand(str(tmp_path / "run" / FOLDS / "fold-1"), Inference(0.3, False, 30))
    # A fold's search has trials with checkpoints, which are no folds.
    fresh_run(tmp_path / "run" / FOLDS / "fold-0" / "tune" / "x" / "trials" / "0001", config)
    place = find_model(str(tmp_path / "run"), STORE)
    assert place == ModelPlace(str(tmp_path / "run"), FOLDS)
    model = load_model(place, STORE, CPU)
    assert num_networks(model.network) == 3
    assert [each.run for each in checkpoints_of(place, STORE)] == [
        f"{place.run}/{FOLDS}/fold-{fold}" for fold in range(3)
    ]
    assert model.progress.patients == ["A", "B", "C"]
    assert model.config.split.fold == "all"  # type: ignore[union-attr]
    assert [own.progress.patients for _, own in model.folds] == [["A", "B"], ["B", "C"], ["C", "A"]]
    assert model.inference.threshold == THRESHOLD  # the median
    assert model.inference.mirror
    assert model.inference.keep == "all"
    assert title(place, model) == "3 folds' models together"
    assert "mean of 3 checkpoints" in model.inference.describe()
    # Equal weights: their mean is one of them.
    one = load_checkpoint(find_model(f"{place.run}/{FOLDS}/fold-0", STORE), STORE, CPU)
    x = torch.randn(1, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(model.network(x), one.network(x))
    check_as_validated(config, model)
    shutil.rmtree(tmp_path / "run" / FOLDS / "fold-2")
    with pytest.raises(InputError, match="models of 2 folds and not of all"):
        load_model(place, STORE, CPU)


def test_the_folds_together_score_none_of_their_patients(config: Config, tmp_path: Path) -> None:
    patients = tuple(PackedData(config.data.shards).test().index.patients())
    config = with_overrides(config, {"split.folds": 3})
    for fold in range(3):
        fresh_run(tmp_path / "run" / FOLDS / f"fold-{fold}", config, patients=patients[fold : fold + 1])
    with pytest.raises(InputError, match="2 of 2 test patients were trained or chosen on"):
        run_score(find_model(str(tmp_path / "run"), STORE), config, 1, map)
