"""Cross-validation's table: each patient once, in the fold that held the patient out; what the folds scored."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from cohorts import score
from conftest import pack_source  # type: ignore[import-not-found]
from model_run import fresh_run

from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.model import ModelPlace, find_model
from bts_dist.out_of_fold import fold_figures, over_folds, score_out_of_fold
from bts_dist.score import read_score
from shards.config import HoldoutSplit, StoreConfig
from shards.errors import InputError
from shards.manifest import load_manifest
from shards.store import LocalStore, open_store

Fold = tuple[ModelPlace, Config]


@pytest.fixture(scope="module")
def folds(packed: Path, config: Config, tmp_path_factory: pytest.TempPathFactory) -> list[Fold]:
    """Three folds of the phantom, each with a model of its own that was trained on nothing."""
    place = tmp_path_factory.mktemp("folds")
    found = []
    for number in range(3):
        split = HoldoutSplit(fold=number, folds=3)
        shards = pack_source(packed.parent / "source", place / f"shards-{number}", split)
        manifest = load_manifest(open_store(str(shards)))
        seen = tuple(manifest.patients["train"] + manifest.patients["val"])
        own = with_overrides(config, {"data.shards": str(shards)})
        run = fresh_run(place / f"run-{number}", own, patients=seen)
        found.append((find_model(run, StoreConfig()), own))
    return found


def scored(folds: Sequence[Fold], run: LocalStore) -> dict[str, object]:
    location, result = score_out_of_fold(folds, run, 1, map)
    assert location == f"{run.uri}/score"
    return result


def test_each_patients_row_says_its_fold(folds: list[Fold], run: LocalStore) -> None:
    result = scored(folds, run)
    assert read_score(run) == json.loads(json.dumps(result))
    tested = {
        patient: number
        for number, (_, own) in enumerate(folds)
        for patient in load_manifest(open_store(own.data.shards)).patients["test"]
    }
    assert len(tested) == 10
    assert {row["patient"]: row["fold"] for row in result["patients"]} == tested == result["fold_of"]
    rows = list(csv.DictReader(io.StringIO(run.get("score/patients.csv").decode())))
    assert {row["patient"]: int(row["fold"]) for row in rows} == tested
    for number, fold in enumerate(result["folds"]):
        own = [row["dice"] for row in result["patients"] if row["fold"] == number]
        assert fold["dice/patient"] == pytest.approx(np.mean(own), abs=1e-15)


def test_how_the_folds_predict_is_said(folds: list[Fold], run: LocalStore) -> None:
    result = scored(folds, run)
    assert result["predicts"] == "each fold in its own way: threshold 0.018, mirrored, as validated"


def test_folds_of_different_splits_are_refused(folds: list[Fold], run: LocalStore) -> None:
    with pytest.raises(InputError, match=r"patient \w+ is tested in folds 0 and 1"):
        scored([folds[0], folds[0]], run)
    with pytest.raises(InputError, match=r"\d patients are tested in no fold \(first: "):
        scored(folds[:2], run)
    assert run.list() == []


def test_a_folds_figures_and_their_spread() -> None:
    folds = [
        [score("A", (8, 0, 0), (0, 2, 2)), score("B", (0, 0, 0))],
        [score("C", (1, 1, 2))],
        [score("D", (0, 0, 9)), score("E", (9, 0, 0)), score("F", (6, 3, 3))],
    ]
    figures = [fold_figures(fold) for fold in folds]
    assert [fold["iou/pooled"] for fold in figures] == [8 / 12, 1 / 4, 15 / 30]
    assert [fold["dice/patient"] for fold in figures] == pytest.approx([0.9, 0.4, 5 / 9])
    over = over_folds([{"dice/patient": 0.9}, {"dice/patient": 0.6}, {"dice/patient": 0.3}])
    assert over["dice/patient"] == {"mean": pytest.approx(0.6), "std": pytest.approx(0.3)}
