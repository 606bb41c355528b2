"""The files for ``ray up``: Ray's own schema, the project's versions, no keys, few rights."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import botocore.session
import pytest
from cluster_files import AWS, LOCAL, PINNED, ROOT, aws_node_types, launcher, options
from jsonschema import ValidationError
from ray._private.label_utils import validate_node_label_syntax
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.prices import read_prices

FILES = pytest.mark.parametrize("path", [AWS, LOCAL], ids=lambda path: path.name)


def pyproject_version() -> str:
    found = re.search(
        r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert found is not None
    return found[1]


@FILES
def test_ray_accepts_it(path: Path) -> None:
    validate_config(prepare_config(launcher(path)))


@FILES
def test_a_misspelt_key_is_noticed(path: Path) -> None:
    with pytest.raises(ValidationError, match="idle_timeout"):
        validate_config(prepare_config({**launcher(path), "idle_timeout": 5}))


@FILES
def test_machines_install_the_projects_wheel_with_pinned_packages(path: Path) -> None:
    wheel = f"bts_dist-{pyproject_version()}-py3-none-any.whl"
    installs = [c for c in launcher(path)["setup_commands"] if "pip install" in c]
    assert all(c.endswith(f"~/dist/{wheel}") for c in installs)
    assert ["--constraint ~/constraints.txt" in c for c in installs] == [True, False]
    assert "--no-deps" in installs[1]


def test_the_pinned_ray_is_the_one_these_tests_ran_with() -> None:
    import ray

    assert PINNED["ray"] == ray.__version__


@FILES
def test_what_is_placed_on_machines_is_there_or_made(path: Path) -> None:
    mounts = launcher(path)["file_mounts"]
    made = {
        "dist": "make wheel",
        "~/.ray/auth_token": "ray get-auth-token --generate && chmod 600 ~/.ray/auth_token",
        "~/.bts/keys": "mkdir -p ~/.bts && touch ~/.bts/keys && chmod 600 ~/.bts/keys",
    }
    for place in mounts.values():
        assert place in made or (ROOT / place).exists(), place
    comments = path.read_text(encoding="utf-8").partition("cluster_name")[0]
    assert all(f"#   {command}" in comments for command in made.values())


@FILES
def test_the_token_is_asked_for_and_for_the_user_alone(path: Path) -> None:
    config = launcher(path)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"][0]
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = (c for c in config[key] if "ray start" in c)
        assert "RAY_AUTH_MODE=token ray start" in start


def set_up(path: Path, home: Path, *parts: str, programs: str = "") -> None:
    """Run the commands of the set-up that have one of these parts, on a machine with this home."""
    environment = {"HOME": str(home), "PATH": programs + os.environ["PATH"]}
    steps = [c for c in launcher(path)["setup_commands"] if any(part in c for part in parts)]
    assert steps
    for command in steps:
        subprocess.run(["bash", "-c", command], env=environment, check=True)


@FILES
def test_shells_have_what_they_need_and_nobody_else(path: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / ".bts").mkdir(parents=True)
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("t", encoding="utf-8")
    (home / ".bts" / "keys").write_text("WANDB_API_KEY=w\nBTS_PSEUDONYM_KEY='p q'\n", encoding="utf-8")
    own = "export RAY_AUTH_MODE=token  # somebody's own, from before\n"
    (home / ".bashrc").write_text(own, encoding="utf-8")
    for _ in range(2):  # a machine may be set up again
        set_up(path, home, ".bashrc", "chmod")
    assert stat.S_IMODE((home / ".bts" / "keys").stat().st_mode) == 0o600
    # As Ray's launcher runs each command.
    words = ["bash", "--login", "-c", "-i", "source ~/.bashrc; env; sort ~/.bashrc | uniq --repeated"]
    environment = {"HOME": str(home), "PATH": os.environ["PATH"]}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    printed = done.stdout.splitlines()
    assert {"WANDB_API_KEY=w", "BTS_PSEUDONYM_KEY=p q"} <= set(printed)
    found = dict(line.split("=", 1) for line in printed)  # a line that is there twice is no variable
    assert found["PATH"].startswith(f"{home}/.bts/venv/bin:")
    patient = {"AWS_METADATA_SERVICE_TIMEOUT": "5", "AWS_METADATA_SERVICE_NUM_ATTEMPTS": "5"}
    assert {n: v for n, v in found.items() if n.startswith("AWS_METADATA")} == (
        patient if path == AWS else {}
    )


def test_boto_heeds_the_patience_that_shells_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_METADATA_SERVICE_TIMEOUT", "5")
    monkeypatch.setenv("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "5")
    session = botocore.session.Session()
    assert session.get_config_variable("metadata_service_timeout") == 5
    assert session.get_config_variable("metadata_service_num_attempts") == 5


@FILES
def test_a_set_up_that_came_to_nothing_begins_again(path: Path, tmp_path: Path) -> None:
    # What `python3 -m venv` leaves where python3-venv was not there yet: no pip.
    programs = tmp_path / ".bts" / "venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").symlink_to(sys.executable)
    (tmp_path / ".bts" / "keys").write_text("", encoding="utf-8")
    set_up(path, tmp_path, "python3 -m venv")
    assert (programs / "pip").exists()
    assert (tmp_path / ".bts" / "keys").exists()
    (programs / "installed").touch()
    set_up(path, tmp_path, "python3 -m venv")
    assert (programs / "installed").exists(), "what is whole stays"


def test_a_new_machine_is_waited_for_until_it_lets_lists_be_read(tmp_path: Path) -> None:
    stands_in = {"sudo": 'echo "$@" >> ~/asked; test $(wc -l < ~/asked) -ge 3', "sleep": "exit 0"}
    for name, body in stands_in.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    set_up(AWS, tmp_path, "apt-get --quiet update", programs=f"{tmp_path}:")
    assert (tmp_path / "asked").read_text().splitlines() == 3 * ["apt-get --quiet update"]


@FILES
def test_no_key_is_written_down(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"AKIA|ASIA|aws_credentials|aws_secret|BEGIN .*KEY|\w+_KEY *[=:] *(?!…)\S", text) == []


@FILES
def test_the_two_files_set_machines_up_alike(path: Path) -> None:
    own = "apt-get|AWS_METADATA"
    shared = [c for c in launcher(AWS)["setup_commands"] if not re.search(own, c)]
    assert [c for c in launcher(path)["setup_commands"] if not re.search(own, c)] == shared
    assert launcher(path)["file_mounts"] == launcher(AWS)["file_mounts"]


def test_groups_are_bounded_and_come_from_nothing() -> None:
    types = aws_node_types()
    workers = {name: t for name, t in types.items() if name != "head"}
    assert types["head"]["max_workers"] == 0
    assert types["head"]["resources"] == {"CPU": 0}
    assert all(t["min_workers"] == 0 < t["max_workers"] for t in workers.values())
    assert 0 < launcher(AWS)["max_workers"] <= sum(t["max_workers"] for t in workers.values())
    assert launcher(AWS)["idle_timeout_minutes"] > 0


def test_labels_say_what_a_machine_is() -> None:
    for node in aws_node_types().values():
        labels = node.get("labels", {})
        validate_node_label_syntax(labels)
        if labels:
            spot = "InstanceMarketOptions" in node["node_config"]
            assert labels["ray.io/market-type"] == ("spot" if spot else "on-demand")
    gpu, spot = aws_node_types()["gpu"], aws_node_types()["gpu_spot"]
    assert gpu["node_config"].items() <= spot["node_config"].items()
    assert spot["priority"] > gpu.get("priority", 0)


def test_the_prices_have_every_gpu_machine() -> None:
    listed = {i.name: i for i in read_prices(ROOT / "configs" / "prices.yaml").instances}
    for node in aws_node_types().values():
        accelerator = node.get("labels", {}).get("ray.io/accelerator-type")
        if accelerator:
            instance = listed[node["node_config"]["InstanceType"]]
            assert instance.has(f"NVIDIA {accelerator}")
            assert instance.gpus == 4, "as the file's comments say, and test_ray_up.py asks AWS"


def test_disks_are_encrypted_and_go_with_the_machine() -> None:
    for node in aws_node_types().values():
        (disk,) = node["node_config"]["BlockDeviceMappings"]
        assert disk["Ebs"]["Encrypted"]
        assert disk["Ebs"]["DeleteOnTermination"]


def test_the_local_head_is_named_the_same_everywhere() -> None:
    config = launcher(LOCAL)
    (start,) = (options(c) for c in config["head_start_ray_commands"] if "ray start" in c)
    assert start["node-ip-address"] == start["dashboard-host"] == config["provider"]["head_ip"]
    assert config["min_workers"] == config["max_workers"] == len(config["provider"]["worker_ips"])
