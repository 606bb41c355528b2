"""The card says what checkpoint, data set and scores say, and no more."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import pack_source  # type: ignore[import-not-found]
from model_run import fresh_run

from bts_dist import metrics
from bts_dist.checkpoint import Progress
from bts_dist.compose import with_overrides
from bts_dist.config import Config, ScoreConfig
from bts_dist.data import SampleSource
from bts_dist.model import FOLDS, Model, ModelPlace, as_validated, find_model, load_model
from bts_dist.model_card import CardFacts, is_validated, model_card
from bts_dist.out_of_fold import score_out_of_fold
from bts_dist.parity import Parity, ParitySlices
from bts_dist.patients import PatientScore
from bts_dist.score import read_score
from bts_dist.surface import SurfaceScores
from bts_dist.unet import count_parameters, make_unet
from shards.config import HoldoutSplit, StoreConfig
from shards.reader import PackedData
from shards.store import LocalStore

NAME = "step-00000016-a1"
PARITY = {"model.onnx": Parity(3.2e-7, 2, 50, 4096)}


@pytest.fixture
def facts(config: Config, packed: Path, run: LocalStore) -> CardFacts:
    """A checkpoint of the packed phantom, not scored."""
    data = PackedData(str(packed))
    source = SampleSource(data.training("val"), config.data)
    seen = [*data.manifest.patients["train"], *data.manifest.patients["val"]]
    progress = Progress(
        2, 16, val_dice=[0.1, 0.4321], threshold=0.7, data_id=data.manifest.data_id, patients=seen
    )
    cpu = torch.device("cpu")
    model = Model(make_unet(config.model, cpu), config, progress, cpu, as_validated(progress, config))
    slices = ParitySlices(source, ("x",), "5 slices of 1 validation patients", real=True)
    return CardFacts(ModelPlace(run.uri, NAME), model, config, slices, PARITY, 1e-3)


def changed(facts: CardFacts, **changes: Any) -> CardFacts:
    return CardFacts(**{**{name: getattr(facts, name) for name in facts.__dataclass_fields__}, **changes})


def put_score(run: LocalStore, folder: str, checkpoint: str, data_id: str) -> dict[str, Any]:
    """A ``score.json`` of three patients: one well found, one badly, one missed."""
    scores = [
        PatientScore(
            name,
            "AX",
            np.array([counts], np.int64),
            slice_pixels=1024,
            lesions=np.array([1, 0, 0]),
            px=SurfaceScores(1.0, 0.7, 0.5),
        )
        for name, counts in (("A", (90, 10, 10)), ("B", (10, 30, 40)), ("C", (0, 5, 50)))
    ]
    result = {
        **metrics.to_json(scores, metrics.summarise(scores, ScoreConfig(bootstrap=100))),
        "threshold": 0.7,
        "checkpoint": checkpoint,
        "data": {"data id": data_id, "patients": 3, "slices": 3},
    }
    run.put(f"{folder}/score.json", json.dumps(result).encode())
    return result


def test_a_card_without_scores_says_so(facts: CardFacts) -> None:
    card = model_card(facts)
    assert "have not been scored on held-out patients" in card
    assert "| Threshold | 0.7, chosen on the validation patients |" in card
    assert "`dice/patient` was 0.4321" in card
    assert f"{count_parameters(facts.model.network):,} parameters" in card
    assert "| `model.onnx` | 3.2e-07 | 2 | 50 | 4096 |" in card
    assert "moving average" in card
    assert "5 slices of 1 validation patients" in card
    assert "bf16" not in card


def test_the_data_set_is_told_as_its_manifest_tells_it(facts: CardFacts, packed: Path) -> None:
    card, manifest = model_card(facts), PackedData(str(packed)).manifest
    assert f"`{manifest.data_id}`. The model was trained or chosen on 8 of its patients" in card
    for split, purpose in (("train", "moving"), ("val", "choosing"), ("test", "scoring")):
        assert (
            f"| {split} | {len(manifest.patients[split])} | {manifest.num_samples(split)} | {purpose}" in card
        )
    assert "Slices are 32 × 32 pixels" in card
    assert str(packed) not in card


@pytest.mark.parametrize("place", ["nowhere", "external"])
def test_another_data_set_is_not_taken_for_the_models_own(
    facts: CardFacts, external: Path, tmp_path: Path, place: str
) -> None:
    shards = external if place == "external" else tmp_path / "nowhere"
    card = model_card(changed(facts, config=with_overrides(facts.config, {"data.shards": str(shards)})))
    assert "could not be read" in card
    assert "| train |" not in card
    assert facts.model.progress.data_id in card


def test_scores_of_this_checkpoint_are_shown_with_their_spread(facts: CardFacts, run: LocalStore) -> None:
    own = put_score(run, "score", f"{NAME} (epoch 2)", facts.model.progress.data_id)
    card = model_card(facts)
    assert "Held-out test patients of the same data set" in card
    assert "scored on no other data set" in card
    for name, row in own["metrics"].items():
        interval = f"{row['low']:.4f} – {row['high']:.4f}"
        unit = f", {row['unit']}" if row["unit"] else ""
        assert f"| `{name}`{unit} | {row['mean']:.4f} | {interval} |" in card
    assert "| `hd95/patient`, px | 1.0000 |" in card
    assert "Dice is from 0.000 to 0.900, below 0.5 in 2 of 3, and in 1 the tumour was missed" in card
    put_score(run, "score-0123456789abcdef", f"{NAME} (epoch 2)", "0123456789abcdef")
    card = model_card(facts)
    assert "### Patients of data set `0123456789abcdef`" in card
    assert "scored on no other data set" not in card


def test_scores_of_patients_seen_in_training_are_no_result(facts: CardFacts, run: LocalStore) -> None:
    own = put_score(run, "score", f"{NAME} (epoch 2)", facts.model.progress.data_id)
    run.put("score/score.json", json.dumps(own | {"leak": "seen: not a result"}).encode())
    card = model_card(facts)
    assert "### Not a result: slices of patients seen in training" in card
    assert "**Leak**: seen: not a result." in card
    assert "Held-out test patients of the same" not in card


def test_scores_of_another_checkpoint_are_not_shown(facts: CardFacts, run: LocalStore) -> None:
    put_score(run, "score", "step-00000008-a1 (epoch 1)", facts.model.progress.data_id)
    assert "have not been scored on held-out patients" in model_card(facts)


def test_weights_saved_within_an_epoch_were_not_validated(facts: CardFacts) -> None:
    assert is_validated(facts.model)
    for progress in (Progress(), Progress(epoch=1, step=11, loss_sum=2.5, val_dice=[0.4])):
        model = replace(facts.model, progress=progress)
        card = model_card(changed(facts, model=model))
        assert "they were never validated" in card
        assert "not chosen on validation patients" in card
        assert "`dice/patient` was" not in card


def test_phantoms_and_low_precision_are_told(facts: CardFacts) -> None:
    config = with_overrides(
        facts.model.config, {"train.precision": "bf16", "optim.ema": None, "data.image_size": 16}
    )
    model = replace(facts.model, config=config)
    slices = ParitySlices(facts.slices.source, ("x",), "5 slices of phantoms", real=False)
    card = model_card(changed(facts, model=model, slices=slices))
    assert "drawn phantoms, no MRI" in card
    assert "validated in bf16" in card
    assert "as the last step left them" in card
    assert "| 16 pixels; probabilities are scaled back" in card


@pytest.fixture
def together(config: Config, packed: Path, tmp_path: Path) -> CardFacts:
    """Three folds' models together, each on its own packed data set, and each patient scored out of fold."""
    place = LocalStore(str(tmp_path / "cv"), tmp_path / "cv")
    exams = []
    for fold in range(3):
        shards = pack_source(
            packed.parent / "source", tmp_path / f"s-{fold}", HoldoutSplit(fold=fold, folds=3)
        )
        manifest = PackedData(str(shards)).manifest
        own = with_overrides(config, {"data.shards": str(shards), "split.folds": 3, "split.fold": fold})
        run = fresh_run(
            place.root / FOLDS / f"fold-{fold}",
            own,
            patients=(*manifest.patients["train"], *manifest.patients["val"]),
            data_id=manifest.data_id,
            val_dice=0.25 + fold / 8,
        )
        exams.append((find_model(run, StoreConfig()), own))
    score_out_of_fold(exams, place, 1, map)
    source = SampleSource(PackedData(str(packed)).training("val"), config.data)
    slices = ParitySlices(source, ("x",), "5 slices of phantoms", real=False)
    whole = find_model(place.uri, StoreConfig())
    model = load_model(whole, StoreConfig(), torch.device("cpu"))
    return CardFacts(whole, model, config, slices, PARITY, 1e-3)


def test_a_card_of_folds_together_tells_of_all_of_them(together: CardFacts, tmp_path: Path) -> None:
    card = model_card(together)
    for fold, (_, own) in enumerate(together.model.folds):
        row = f"| fold-{fold} | `{own.progress.data_id}` | {len(own.progress.patients)} patients | "
        assert row in card
        assert f"| {0.25 + fold / 8:.4f} | threshold 0.018, mirrored, as validated |" in card
    assert "together the models were trained or chosen on 10" in card
    assert "the median of the folds'" in card
    assert "Slices are 32 × 32 pixels. The patients come from" in card
    assert "the mean of the logits of 3" in card
    # What is true of one fold alone is not said of all.
    assert f"Data set `{together.model.progress.data_id}`" not in card
    assert "after epoch" not in card
    assert "at a threshold of one half" not in card
    # No score of the models together, but of each on the patients held out from it.
    score = read_score(LocalStore("", tmp_path / "cv"))
    assert "### Out of fold: each patient by the one model that never saw it" in card
    assert "10 patients, " in card
    mean = score["metrics"]["dice/patient"]["mean"]
    assert f"| `dice/patient` | {mean:.4f} |" in card
    assert "threshold each fold's own" in card
    assert "have not been scored" not in card


def test_an_out_of_fold_score_of_other_models_is_not_the_cards(together: CardFacts, tmp_path: Path) -> None:
    run = LocalStore("", tmp_path / "cv")
    score = read_score(run)
    score["folds"][1]["checkpoint"] = "step-00000099-a1 (epoch 9)"
    run.put("score/score.json", json.dumps(score).encode())
    card = model_card(together)
    assert "### Out of fold" not in card
    assert "no score of each model" in card
    shutil.rmtree(tmp_path / "s-1")
    assert "could not all be read" in model_card(together)
