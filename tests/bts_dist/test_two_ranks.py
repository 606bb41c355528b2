"""Two processes train like one: the same samples in each step, the same loss, one set of weights."""

from itertools import chain
from pathlib import Path

import pytest
import torch
from ranks import POISONED, Record, record_training, run_ranks, validate_fresh

from bts_dist import checkpoint
from bts_dist.account import Account
from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.data import SampleSource
from bts_dist.devices import device_name
from bts_dist.runtime import LocalRuntime
from bts_dist.train import train
from bts_dist.unet import make_unet
from bts_dist.validate import validate
from shards.reader import PackedData
from shards.store import LocalStore

NUM_STEPS = 20
HALF = {"train.precision": "fp16", "train.epochs": 2}
STEEP = {**HALF, "loss.bce": 1e3}
"""A loss whose gradient overflows until the scale has been halved a few times, between steps that go well."""
BATCH_NORM = {"model.norm": "batch", "optim.ema": 0.5, "train.epochs": 2}
LEARNS = {"model.features": 8, "model.depth": 3, "optim.lr": 3e-2, "train.epochs": 6}


def local(root: Path) -> LocalRuntime:
    return LocalRuntime(0, 1, 0, torch.device("cpu"))


def jobs(config: Config) -> dict[str, Config]:
    exact = with_overrides(config, {"train.epochs": 3, "run.name": "exact"})
    return {
        "exact": exact,
        # Seven samples on two ranks, three or four each: ranks cut unequal parts into as many micro-batches.
        "micro": with_overrides(
            exact, {"train.global_batch": 7, "train.micro_batch": 3, "train.epochs": 1, "run.name": "micro"}
        ),
        "batch_norm": with_overrides(
            exact, {**LEARNS, "model.norm": "batch", "optim.ema": 0.5, "run.name": "batch_norm"}
        ),
        # With 24 steps: none of them saves at a step where another does, but at the end.
        **{
            f"saves_{every}": with_overrides(
                exact,
                {
                    "model.norm": "batch",
                    "optim.ema": 0.5,
                    "train.checkpoint_steps": every,
                    "run.name": f"saves_{every}",
                },
            )
            for every in (None, 2, 3)
        },
        "apart": with_overrides(exact, {"run.name": "apart-{rank}"}),
        "half": with_overrides(exact, {**HALF, "run.name": "half"}),
        "steep": with_overrides(exact, {**STEEP, "run.name": "steep"}),
        "steep_micro": with_overrides(exact, {**STEEP, "train.micro_batch": 1, "run.name": "steep_micro"}),
        "steep_exact": with_overrides(
            exact, {**STEEP, "train.deterministic": True, "run.name": "steep_exact"}
        ),
        **{
            name: with_overrides(
                exact, {"train.checkpoint_steps": 1, "train.deterministic": deterministic, "run.name": name}
            )
            for name, deterministic in ((POISONED, False), (f"{POISONED}_exact", True))
        },
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def two(folder: Path, config: Config) -> list[dict[str, Record]]:
    """What each of two ranks recorded of each job."""
    # Of the job "apart", rank 1 alone finds the checkpoint of an earlier attempt.
    earlier = folder / "two" / "apart-1"
    train(with_overrides(config, {"train.epochs": 1}), local(earlier), LocalStore("", earlier), earlier)
    return run_ranks(folder / "two", jobs(config), 2)


@pytest.fixture(scope="module")
def one(folder: Path, config: Config) -> Record:
    """What one process recorded of the same training."""
    root = folder / "one"
    return record_training(jobs(config)["exact"], local(root), LocalStore(str(root), root))


def test_one_and_two_workers_see_the_same_samples_in_every_step(
    one: Record, two: list[dict[str, Record]]
) -> None:
    parts = [rank["exact"]["steps"] for rank in two]
    together = [list(chain(*(step["ids"] for step in steps))) for steps in zip(*parts, strict=True)]
    assert len(together) >= NUM_STEPS
    assert together == [step["ids"] for step in one["steps"]]
    assert all(step["ids"] for steps in parts for step in steps)


def test_one_and_two_workers_agree_in_loss(
    one: Record, two: list[dict[str, Record]], capsys: pytest.CaptureFixture[str]
) -> None:
    alone = torch.tensor([step["loss"] for step in one["steps"][:NUM_STEPS]], dtype=torch.float64)
    worst = 0.0
    for rank in two:
        shared = torch.tensor([s["loss"] for s in rank["exact"]["steps"][:NUM_STEPS]], dtype=torch.float64)
        worst = max(worst, float((alone - shared).abs().max()))
    with capsys.disabled():
        print(f"\nlargest difference in loss, 1 and 2 workers, {len(alone)} steps: {worst:.1e}")
    assert alone.std() > 0.01, "the loss hardly moves: agreement would mean little"
    assert worst < 1e-4


def test_unequal_micro_batches_on_two_ranks_give_the_loss_of_the_whole_batch(
    config: Config, two: list[dict[str, Record]], tmp_path: Path
) -> None:
    whole = with_overrides(jobs(config)["micro"], {"train.micro_batch": None})
    alone = record_training(whole, local(tmp_path), LocalStore("", tmp_path))
    for rank in two:
        for mine, theirs in zip(alone["steps"], rank["micro"]["steps"], strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-4)


def test_an_epochs_row_names_the_devices_and_counts_them(one: Record, two: list[dict[str, Record]]) -> None:
    for record, number in ((one, 1), (two[0]["exact"], 2)):
        assert {row["devices"] for row in record["rows"]} == {number}
        assert {row["device"] for row in record["rows"]} == {device_name(torch.device("cpu"))}


def test_ranks_end_with_the_same_weights(two: list[dict[str, Record]]) -> None:
    for job in ("exact", "batch_norm"):
        assert two[0][job]["weights"] == two[1][job]["weights"]


def test_validation_gives_the_same_figures_on_one_and_two_ranks(
    config: Config, two: list[dict[str, Record]], tmp_path: Path
) -> None:
    alone = validate_fresh(config, local(tmp_path))
    assert alone["val/dice/patient"] > 0
    assert two[0]["validation"] == two[1]["validation"] == alone


def test_with_batch_norm_the_saved_weights_are_the_ones_that_both_ranks_validated(
    config: Config, two: list[dict[str, Record]], folder: Path, tmp_path: Path
) -> None:
    run = LocalStore("", folder / "two" / "batch_norm")
    saved = checkpoint.fetch_newest(run, tmp_path, pytest.fail)
    assert saved is not None
    model = make_unet(jobs(config)["batch_norm"].model, torch.device("cpu"))
    checkpoint.load_weights(model, saved / "ema.safetensors")
    source = SampleSource(PackedData(config.data.shards).training("val"), config.data)
    again = validate(model.eval(), source, config, local(tmp_path), Account()).metrics
    row = two[0]["batch_norm"]["rows"][-1]
    assert {key: row[key] for key in again} == again
    assert again["val/dice/patient_tuned"] > 0


def test_ranks_that_find_different_checkpoints_all_refuse(two: list[dict[str, Record]]) -> None:
    for rank in two:
        assert "different steps, by rank [0, 8]" in rank["apart"]["error"]
        assert "run.dir" in rank["apart"]["error"]


def test_one_and_two_workers_agree_in_half_precision(
    config: Config, two: list[dict[str, Record]], tmp_path: Path
) -> None:
    alone = record_training(jobs(config)["half"], local(tmp_path), LocalStore("", tmp_path))
    for rank in two:
        for mine, theirs in zip(alone["steps"], rank["half"]["steps"], strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-3)
            assert mine["scale"] == theirs["scale"] == 2.0**16


@pytest.mark.parametrize("job", ["steep", "steep_micro", "steep_exact"])
def test_all_ranks_skip_the_same_steps(two: list[dict[str, Record]], job: str) -> None:
    scales = [[step["scale"] for step in rank[job]["steps"]] for rank in two]
    assert len(set(scales[0])) > 3, "hardly anything overflows: agreement would mean little"
    assert scales[0][-1] == scales[0][-4] > 1, "no scale is small enough"
    assert scales[0] == scales[1]
    assert two[0][job]["weights"] == two[1][job]["weights"]


def test_a_deterministic_run_has_the_same_bits_in_half_precision(
    config: Config, two: list[dict[str, Record]], tmp_path: Path
) -> None:
    alone = record_training(jobs(config)["steep_exact"], local(tmp_path), LocalStore("", tmp_path))
    theirs = two[0]["steep_exact"]
    assert [s["scale"] for s in alone["steps"]] == [s["scale"] for s in theirs["steps"]]
    assert alone["weights"] == theirs["weights"]


@pytest.mark.parametrize("job", [POISONED, f"{POISONED}_exact"])
def test_what_is_not_finite_on_one_rank_stops_all_and_is_not_saved(
    two: list[dict[str, Record]], folder: Path, job: str, packed: Path
) -> None:
    spoilt = two[-1][job]["steps"][2]["ids"][-1]
    assert two[0][job]["error"] == two[1][job]["error"]
    assert "the loss is nan at step 3 (samples HOME" in two[0][job]["error"]
    assert PackedData(str(packed)).training("train").index.key[spoilt] in two[0][job]["error"]
    assert checkpoint.step_of(checkpoint.names(LocalStore("", folder / "two" / job))[0]) == 2


def test_with_batch_norm_it_does_not_matter_when_checkpoints_are_saved(two: list[dict[str, Record]]) -> None:
    never, *others = (two[1][f"saves_{every}"] for every in (None, 2, 3))
    for other in others:
        assert other["weights"] == never["weights"]
        assert [step["loss"] for step in other["steps"]] == [step["loss"] for step in never["steps"]]


def test_with_batch_norm_a_state_saved_within_an_epoch_is_that_of_all_ranks(
    two: list[dict[str, Record]],
) -> None:
    """Rank 0 saves; had rank 1 saved instead, it would have saved the same."""
    for job in (f"saves_{every}" for every in (None, 2, 3)):
        states = [[step["state"] for step in rank[job]["steps"]] for rank in two]
        assert len(set(states[0])) == len(states[0])
        assert states[0] == states[1]
