"""What a new start would meet again ends the training at once, on every worker, with the worker's own words."""

import shutil
from pathlib import Path

import pytest
from ray.train import ControllerError, WorkerGroupError

from bts_dist import checkpoint
from bts_dist.compose import dump_yaml, with_overrides
from bts_dist.config import Config
from bts_dist.run import open_run
from cluster.cli import guarded
from cluster.fatal import FATAL, EndAtOnce, fatal_error
from cluster.train_job import run_training
from shards.order import EpochOrder
from shards.reader import PackedData


@pytest.mark.parametrize("kind", FATAL)
def test_a_fatal_error_among_others_is_raised_as_it_is(kind: type[Exception]) -> None:
    error = kind("why")
    with pytest.raises(kind, match=r"^why$") as caught:
        EndAtOnce().after_exception(None, {0: RuntimeError("connection reset"), 2: kind("later"), 1: error})
    assert caught.value is error


def test_other_errors_are_left_to_be_mended_by_a_new_start() -> None:
    failures = {0: RuntimeError("connection reset"), 1: OSError("disk"), 2: ValueError("odd")}
    EndAtOnce().after_exception(None, failures)
    assert fatal_error(WorkerGroupError("", failures)) is None
    assert fatal_error(ControllerError(ValueError("odd"))) is None


def test_the_error_is_found_in_what_ray_raises() -> None:
    error = FloatingPointError("why")
    assert fatal_error(ControllerError(error)) is error
    assert fatal_error(WorkerGroupError("", {0: OSError(), 3: error})) is error


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_training_that_diverges_is_started_once(config: Config) -> None:
    """Both workers meet it in the same step."""
    with pytest.raises(FloatingPointError, match=r"at step \d+ \(samples PHANTOM"):
        run_training(with_overrides(config, {"optim.lr": 1e30}))
    assert attempts(config) == 1
    assert checkpoint.names(open_run(config)) == []


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_fault_in_the_data_of_one_worker_ends_the_command_with_its_words(
    config: Config, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other worker waits for it in a sum over both, which will never come."""
    places = {"data.shards": str(tmp_path / "shards"), "data.window_shards": 1, "train.global_batch": 6}
    damaged = with_overrides(config, places)
    shutil.copytree(packed, damaged.data.shards)
    shard = shard_that_the_second_rank_opens_first(damaged)
    (Path(damaged.data.shards) / shard).write_bytes(b"")
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(damaged))
    assert guarded(["train", "--config", str(path)]) == 2
    said = "".join(capsys.readouterr().err.split())
    assert said.startswith(f"error{shard}:PHANTOM")
    assert "copyorpackitagain" in said
    assert attempts(config) == 1


def attempts(config: Config) -> int:
    """How many times the workers were started."""
    return len(open_run(config).list("attempts/"))


def shard_that_the_second_rank_opens_first(config: Config) -> str:
    """A shard from which the second of two ranks reads in an earlier step than the first."""
    index, train = PackedData(config.data.shards).training("train").index, config.train
    order = EpochOrder(index.shard_sizes, train.seed, 0, train.global_batch, config.data.window_shards)
    opened: list[set[int]] = [set(), set()]
    for step in range(order.num_steps):
        for rank, shards in enumerate(opened):
            shards.update(index.shard[order.part(step, rank, 2)].tolist())
        alone = opened[1] - opened[0]
        if alone:
            return index.shard_names[alone.pop()]
    raise AssertionError("both ranks open every shard in the same step")
