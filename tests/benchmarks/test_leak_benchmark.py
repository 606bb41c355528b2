"""The leak benchmark: what differs between its two arms, and the arithmetic of its page."""

from pathlib import Path
from typing import Any

import pytest

from bts_dist.compose import load_config
from shards.config import HoldoutSplit, PackConfig, SliceSplit
from shards.errors import InputError
from shards.manifest import Manifest, Provenance, ShardRecord


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))


def test_only_split_shards_and_name_differ_between_the_arms() -> None:
    import leak as benchmark

    given = [
        "split.seed=3",
        "split.train=0.6",
        "split.val=0.2",
        "split.test=0.2",
        "run.name=r",
        "tune.trials=4",
    ]
    by_patient, by_slice = (
        load_config(sets=[*given, *own]) for own in benchmark.settings(load_config(sets=given))
    )
    assert by_patient.split == HoldoutSplit(seed=3, train=0.6, val=0.2, test=0.2)
    assert by_slice.split == SliceSplit(seed=3, train=0.6, val=0.2, test=0.2)
    assert (by_patient.run.name, by_slice.run.name) == ("r-by-patient", "r-by-slice")
    assert by_slice.data.shards == by_patient.data.shards + "-by-slice"
    assert by_patient.tune.trials == 0
    same = {"split": by_slice.split, "data": by_slice.data, "run": by_slice.run}
    assert by_patient.model_copy(update=same) == by_slice


@pytest.mark.parametrize("sets", [["split.kind=none"], ["split.kind=slice"], ["split.fold=0"]])
def test_the_comparison_is_with_one_split_by_patient(sets: list[str]) -> None:
    import leak as benchmark

    with pytest.raises(InputError, match=r"set split\.kind=patient and split\.fold=null"):
        benchmark.settings(load_config(sets=sets))


def arm(benchmark: Any, split: Any, patients: dict[str, list[str]], mean: float, **score: str) -> Any:
    manifest = Manifest(
        data_id="0" * 16,
        height=16,
        width=16,
        image_suffix="image.png",
        patients=patients,  # type: ignore[arg-type]
        shards=[
            ShardRecord(name=f"shards/{name}-000000.tar", split=name, samples=n, bytes=1, sha256="0" * 64)  # type: ignore[arg-type]
            for name, n in (("train", 8), ("val", 2), ("test", 4))
        ],
        index_sha256="",
        provenance=Provenance(source="", source_fingerprint="0" * 64, pack=PackConfig(), split=split),
    )
    metrics = {name: {"mean": mean, "low": mean - 0.1, "high": mean + 0.05} for name in benchmark.METRICS}
    row = {"metrics": metrics, "threshold": 0.4, "config": {"train": {"epochs": 2, "seed": 7}}}
    scored = [
        {"patient": name, "slices": 4, "tumour_slices": number}
        for number, name in enumerate(patients["test"])
    ]
    epochs = [
        {"epoch": 1, "val/dice/patient": 0.7, "val/dice/slice": 0.8, "val/dice/pooled": 0.75},
        {"epoch": 2, "val/dice/patient": 0.6, "val/dice/slice": 0.9, "val/dice/pooled": 0.85},
    ]
    return benchmark.Arm({**row, "patients": scored, **score}, epochs, manifest)


def test_the_page_tells_the_difference_and_what_was_scored() -> None:
    import leak as benchmark

    by_patient = arm(benchmark, HoldoutSplit(), {"train": ["a"], "val": ["b"], "test": ["c", "d"]}, 0.8)
    everywhere = {"train": ["a", "b"], "val": ["c"], "test": ["a", "b", "c", "d"]}
    by_slice = arm(benchmark, SliceSplit(), everywhere, 0.875, leak="seen: not a result")
    page = benchmark.page(by_patient, by_slice)
    assert "2 epochs, seed 7" in page
    assert "**The score by slice is no result**, and says so: “seen: not a result”." in page
    assert "| `dice/pooled` | 0.8000 | 0.7000 – 0.8500 | 0.8750 | 0.7750 – 0.9250 | +7.5 |" in page
    assert "| test patients | 2 | 4 |" in page
    assert "| of them with training slices too | 0 | 2 |" in page
    assert "| of them without tumour | 7 (88%) | 10 (62%) |" in page
    assert "| test patients without tumour in their test slices | 1 | 1 |" in page
    assert "| epoch chosen on validation | 1 of 2 | 1 of 2 |" in page
    assert "| `val/dice/slice` at that epoch | 0.8000 | 0.8000 |" in page
