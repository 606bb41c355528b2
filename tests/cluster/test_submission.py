"""A stage made ready to travel: checked here, and free of what only this machine knows."""

from pathlib import Path

import pytest

from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.run import named
from cluster import stages
from cluster.cli import guarded
from cluster.dashboard import ADDRESSES
from cluster.submission import STAGES, check_stage, entrypoint, make_submission
from shards.errors import InputError


def test_only_stages_can_be_jobs() -> None:
    for stage in STAGES:
        check_stage(stage, None)
    with pytest.raises(
        InputError, match="'trian' is no stage that can be a job; those are verify, pack, tune, train"
    ):
        check_stage("trian", None)
    with pytest.raises(InputError, match="--model belongs to score and report, not to train"):
        check_stage("train", "runs/demo")


def test_a_job_has_its_own_cluster_and_places_that_mean_the_same_everywhere(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    away = with_overrides(
        config,
        {
            "data.shards": "s3://bucket/shards",
            "run.dir": "runs",
            "run.name": None,
            "cluster.address": "http://h:8265",
        },
    )
    sent = make_submission("score", away, "runs/demo").config
    assert sent.cluster.address == "auto"
    assert sent.data.shards == "s3://bucket/shards"
    assert sent.run.dir == str(tmp_path / "runs")
    # Given again, the command goes on with the same run, wherever it is given.
    assert sent.run.name == named(away).run.name
    assert make_submission("score", away, "runs/demo").model == str(tmp_path / "runs" / "demo")
    assert make_submission("score", away, "s3://bucket/run").model == "s3://bucket/run"


def test_a_job_runs_on_ray(config: Config) -> None:
    with pytest.raises(InputError, match=r"cluster\.runtime is local; .* --set cluster\.runtime=ray"):
        make_submission("train", with_overrides(config, {"cluster.runtime": "local"}))


def test_the_command_line_survives_a_shell(config: Config) -> None:
    submission = make_submission("report", config, "/data/my run; rm -rf x")
    assert entrypoint(submission, "/opt/my env/python") == (
        "'/opt/my env/python' -m cluster.cli report --config config.yaml --model '/data/my run; rm -rf x'"
    )
    assert entrypoint(make_submission("train", config), "python") == (
        "python -m cluster.cli train --config config.yaml"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--set", "optim.lrr=1"], "did you mean optim.lr?"),
        (["trian"], "'trian' is no stage that can be a job"),
        (["score", "--model", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_refused_before_anything_is_sent(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(["submit", *words, "--address", "http://nobody.invalid:8265"]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_without_an_address_the_stage_runs_here(
    phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ADDRESSES:
        monkeypatch.delenv(name, raising=False)
    assert guarded(["submit", "verify", "--set", f"data.source={phantom}", "--set", "pack.workers=1"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "no address: the stage runs here" in printed
    assert f"{phantom}: 10 patients" in printed
    assert guarded(["submit", "verify", "--set", f"data.source={tmp_path / 'none'}"]) == 2

    def interrupted(config: Config) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "verify", interrupted)
    assert guarded(["submit", "verify", "--set", f"data.source={phantom}"]) == 130
