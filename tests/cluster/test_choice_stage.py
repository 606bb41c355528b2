"""Choices are made by ``bts train`` when training has ended, and again only when their settings change."""

import json
from pathlib import Path

import pytest

from bts_dist.compose import dump_yaml, with_overrides
from bts_dist.config import Config
from bts_dist.model import find_model
from bts_dist.run import run_uri
from cluster.cli import guarded


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert guarded(arguments) == 0
    return " ".join(capsys.readouterr().out.split())


def record(config: Config) -> dict[str, object]:
    place = find_model(run_uri(config), config.store)
    found: dict[str, object] = json.loads((Path(place.run) / "inference" / f"{place.name}.json").read_text())
    return found


def test_training_ends_with_choices_that_scoring_follows(
    capsys: pytest.CaptureFixture[str], config: Config, tmp_path: Path
) -> None:
    config = with_overrides(config, {"cluster.runtime": "local"})
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(config))
    command = ("train", "--config", str(file))
    text = run(capsys, *command)
    assert "Choices on 2 validation patients" in text
    assert all(f"│ {name} " in text for name in ("start", "mirror", "ensemble", "threshold", "components"))
    before = record(config)
    assert "choose up to date: threshold" in run(capsys, *command)

    text = run(capsys, *command, "--set", "score.choices=[threshold]")
    assert "train up to date" in text
    assert "│ threshold " in text
    assert "│ mirror " not in text
    assert record(config) != before
    assert record(config)["mirror"] is True

    # The YAML file still asks for all choices; the model's own config knows what was asked last.
    assert guarded(["score", "--config", str(file)]) == 2
    assert "which then only chooses anew" in " ".join(capsys.readouterr().err.split())
    run(capsys, "score", "--model", run_uri(config))
    score = json.loads((Path(run_uri(config)) / "score" / "score.json").read_text())
    assert score["threshold"] == record(config)["threshold"]
    assert [row["choice"] for row in score["inference"]["rows"]] == ["threshold"]
