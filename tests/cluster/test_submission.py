"""A stage made ready to travel: checked here, and free of what only this machine knows."""

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.run import named, run_uri
from cluster import stages
from cluster.cli import guarded
from cluster.dashboard import ADDRESSES
from cluster.submission import STAGES, check_stage, entrypoint, local_places, make_submission
from cluster.submit import head_python, tell_places
from shards.errors import InputError


def test_only_stages_can_be_jobs() -> None:
    for stage in STAGES:
        check_stage(stage, {})
    with pytest.raises(
        InputError, match="'trian' is no stage that can be a job; those are verify, pack, tune, train"
    ):
        check_stage("trian", {})
    with pytest.raises(InputError, match="--model belongs to score and report, not to train"):
        check_stage("train", {"--model": "runs/demo"})
    with pytest.raises(InputError, match="--scores belongs to report, not to score"):
        check_stage("score", {"--scores": "score-1"})


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
    sent = make_submission("score", away, {"--model": "runs/demo"}).config
    assert sent.cluster.address == "auto"
    assert sent.data.shards == "s3://bucket/shards"
    assert sent.run.dir == str(tmp_path / "runs")
    # Given again, the command goes on with the same run, wherever it is given.
    assert sent.run.name == named(away).run.name
    for given, travels in (
        (
            {"--model": "runs/demo", "--scores": "score-1"},
            {"--model": f"{tmp_path}/runs/demo", "--scores": "score-1"},
        ),
        ({"--model": "s3://bucket/run"}, {"--model": "s3://bucket/run"}),
    ):
        assert make_submission("report", away, given).options == travels
    assert make_submission("verify", away, {"--packed": "p"}).options == {"--packed": f"{tmp_path}/p"}


def test_what_is_packed_belongs_to_a_run_only_where_one_is_named(config: Config) -> None:
    nameless = with_overrides(config, {"run.name": None})
    for stage, place in (("verify", config.data.source), ("pack", config.data.shards)):
        sent = make_submission(stage, nameless)
        assert sent.config.run.name is None
        assert sent.place == place
        assert make_submission(stage, config).config.run.name == "test"
    assert make_submission("train", nameless).place == run_uri(named(nameless))
    assert make_submission("score", nameless, {"--model": "s3://b/r"}).place == "s3://b/r"


def test_local_places_are_those_that_the_stage_uses(config: Config) -> None:
    away = with_overrides(
        config, {"data.shards": "s3://b/shards", "score.ensemble": ["/m/1", "s3://b/2", "/m/3"]}
    )
    source, runs = config.data.source, config.run.dir

    def local(stage: str, **options: str) -> dict[str, str]:
        named_options = {f"--{name}": value for name, value in options.items()}
        return local_places(make_submission(stage, away, named_options))

    assert local("verify") == {"data.source": source}
    assert local("verify", packed="/p") == {"--packed": "/p"}
    assert local("pack") == {"data.source": source}
    assert local("tune") == {"run.dir": runs}
    assert local("train") == {"run.dir": runs, "score.ensemble": "/m/1,/m/3"}
    assert local("score", model="/m") == {"--model": "/m", "score.ensemble": "/m/1,/m/3"}
    assert local("report", model="file:///m") == {"--model": "file:///m"}
    assert local("report", model="s3://b/r", scores="score-1") == {}
    assert local("run") == {"data.source": source, "run.dir": runs, "score.ensemble": "/m/1,/m/3"}


ELSEWHERE = "203.0.113.7"  # RFC 5737: for documentation, so nobody's


@pytest.mark.parametrize(
    ("stage", "nodes", "line"),
    [
        ("train", {"127.0.0.1": True}, ""),
        (
            "train",
            {"127.0.0.1": True, ELSEWHERE: False},
            "every node of the cluster must see run.dir=/d/[a]/runs",
        ),
        # The head does it alone.
        ("report", {"127.0.0.1": True, ELSEWHERE: False}, ""),
        ("report", {ELSEWHERE: True}, "the cluster's head must see run.dir=/d/[a]/runs"),
    ],
)
def test_what_other_machines_must_see_is_said(
    config: Config, capsys: pytest.CaptureFixture[str], stage: str, nodes: dict[str, bool], line: str
) -> None:
    rows = [{"state": "ALIVE", "node_ip": ip, "is_head_node": head} for ip, head in nodes.items()]
    gone = {"state": "DEAD", "node_ip": ELSEWHERE, "is_head_node": True}
    board: Any = SimpleNamespace(read=lambda path: {"result": {"result": [*rows, gone]}})
    away = with_overrides(config, {"data.shards": "s3://b/shards", "run.dir": "/d/[a]/runs"})
    tell_places(make_submission(stage, away), board)
    assert capsys.readouterr().out.strip().partition(":")[0] == line


@pytest.mark.parametrize("python", ["/opt/env/bin/python", "/opt/my env/bin/python", "/o'neil/#1/bin/python"])
def test_a_job_runs_under_the_interpreter_of_the_heads_ray(python: str) -> None:
    # As Ray's start_raylet writes it.
    command = subprocess.list2cmdline([python, "/opt/my env/setup_worker.py", "--node-ip-address=10.0.0.1"])
    others = [{"raylet": {}, "cmdline": ["raylet", "--python_worker_command=/other/python worker.py"]}]
    head = {
        "raylet": {"isHeadNode": True},
        "cmdline": ["raylet", "--head", f"--python_worker_command={command}"],
    }
    board: Any = SimpleNamespace(read=lambda path: {"summary": [*others, head]})
    assert head_python(board) == python


def test_a_job_runs_on_ray(config: Config) -> None:
    with pytest.raises(InputError, match=r"cluster\.runtime is local; .* --set cluster\.runtime=ray"):
        make_submission("train", with_overrides(config, {"cluster.runtime": "local"}))


def test_the_command_line_survives_a_shell(config: Config) -> None:
    submission = make_submission("report", config, {"--model": "/data/my run; rm -rf x"})
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
        (["score"], "say which model to score"),
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
