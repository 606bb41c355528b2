"""The files for ``ray up``: Ray's own schema, the project's versions, no keys, few rights."""

import json
import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cluster_files import AWS, LOCAL, PINNED, ROOT, launcher, options
from jsonschema import ValidationError
from ray._private.label_utils import validate_node_label_syntax
from ray.autoscaler._private.util import prepare_config, validate_config

POLICIES = {
    name: json.loads((ROOT / "cluster" / "aws" / f"{name}.json").read_text(encoding="utf-8"))
    for name in ("trust", "head-policy", "worker-policy")
}
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


@FILES
def test_shells_have_the_keys_and_nobody_else(path: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / ".bts").mkdir(parents=True)
    (home / ".bts" / "keys").write_text("WANDB_API_KEY=w\nBTS_PSEUDONYM_KEY='p q'\n", encoding="utf-8")
    environment = {"HOME": str(home), "PATH": os.environ["PATH"]}
    steps = [c for c in launcher(path)["setup_commands"] if ".bts" in c]
    for command in 2 * steps:  # a machine may be set up again
        subprocess.run(["bash", "-c", command], env=environment, check=True)
    assert stat.S_IMODE((home / ".bts" / "keys").stat().st_mode) == 0o600
    # As Ray's launcher runs each command.
    words = ["bash", "--login", "-c", "-i", "source ~/.bashrc; env; wc -l < ~/.bashrc"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    printed = done.stdout.splitlines()
    assert {"WANDB_API_KEY=w", "BTS_PSEUDONYM_KEY=p q"} <= set(printed)
    assert printed[-1].strip() == "1"


@FILES
def test_no_key_is_written_down(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"AKIA|ASIA|aws_credentials|aws_secret|BEGIN .*KEY|\w+_KEY *[=:] *(?!…)\S", text) == []


@FILES
def test_the_two_files_set_machines_up_alike(path: Path) -> None:
    shared = [c for c in launcher(AWS)["setup_commands"] if "apt-get" not in c]
    assert [c for c in launcher(path)["setup_commands"] if "apt-get" not in c] == shared
    assert launcher(path)["file_mounts"] == launcher(AWS)["file_mounts"]


def node_types() -> dict[str, dict[str, Any]]:
    types: dict[str, dict[str, Any]] = prepare_config(launcher(AWS))["available_node_types"]
    return types


def test_groups_are_bounded_and_come_from_nothing() -> None:
    types = node_types()
    workers = {name: t for name, t in types.items() if name != "head"}
    assert types["head"]["max_workers"] == 0
    assert types["head"]["resources"] == {"CPU": 0}
    assert all(t["min_workers"] == 0 < t["max_workers"] for t in workers.values())
    assert 0 < launcher(AWS)["max_workers"] <= sum(t["max_workers"] for t in workers.values())
    assert launcher(AWS)["idle_timeout_minutes"] > 0


def test_labels_say_what_a_machine_is() -> None:
    for node in node_types().values():
        labels = node.get("labels", {})
        validate_node_label_syntax(labels)
        if labels:
            spot = "InstanceMarketOptions" in node["node_config"]
            assert labels["ray.io/market-type"] == ("spot" if spot else "on-demand")
    gpu, spot = node_types()["gpu"], node_types()["gpu_spot"]
    assert gpu["node_config"].items() <= spot["node_config"].items()
    assert spot["priority"] > gpu.get("priority", 0)


def test_no_machine_is_open_to_the_world() -> None:
    # Without groups of its own a machine gets one from Ray that lets ssh in from everywhere.
    for node in node_types().values():
        assert node["node_config"]["SecurityGroupIds"]
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
    commands = (ROOT / "cluster" / "aws" / "README.md").read_text(encoding="utf-8")
    assert "security_group" not in launcher(AWS)["provider"]
    assert "0.0.0.0/0" not in AWS.read_text(encoding="utf-8") + commands
    openings = [line for line in commands.splitlines() if "authorize-security-group-ingress" in line]
    sources = {tuple(sorted(options(line).keys() & {"cidr", "source-group"})) for line in openings}
    assert sources == {("cidr",), ("source-group",)}
    assert all("--port 22 " in line for line in openings if "--cidr" in line)


def test_disks_are_encrypted_and_go_with_the_machine() -> None:
    for node in node_types().values():
        (disk,) = node["node_config"]["BlockDeviceMappings"]
        assert disk["Ebs"]["Encrypted"]
        assert disk["Ebs"]["DeleteOnTermination"]


def statements(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = POLICIES[name]["Statement"]
    return found


def test_roles_are_those_of_the_policies() -> None:
    arns = {n["node_config"]["IamInstanceProfile"]["Arn"].rpartition("/")[2] for n in node_types().values()}
    assert arns == {"bts-head", "bts-worker"}
    (passed,) = (s["Resource"] for s in statements("head-policy") if s["Action"] == "iam:PassRole")
    assert passed == "arn:aws:iam::123456789012:role/bts-worker"


def test_workers_may_use_the_bucket_and_nothing_else() -> None:
    actions = [a for s in statements("worker-policy") for a in s["Action"]]
    assert all(a.startswith("s3:") and "*" not in a for a in actions)
    assert {s["Resource"] for s in statements("worker-policy")} == {
        "arn:aws:s3:::BUCKET",
        "arn:aws:s3:::BUCKET/*",
    }


def test_the_head_may_end_machines_of_this_cluster_alone() -> None:
    (end,) = (s for s in statements("head-policy") if s["Action"] == "ec2:TerminateInstances")
    assert end["Condition"] == {
        "StringEquals": {"aws:ResourceTag/ray-cluster-name": launcher(AWS)["cluster_name"]}
    }
    region = launcher(AWS)["provider"]["region"]
    assert all(
        region in json.dumps(s)
        for s in statements("head-policy")
        if s["Sid"] in ("StartMachines", "FindTheNewestImages")
    )


def test_the_local_head_is_named_the_same_everywhere() -> None:
    config = launcher(LOCAL)
    (start,) = (options(c) for c in config["head_start_ray_commands"] if "ray start" in c)
    assert start["node-ip-address"] == start["dashboard-host"] == config["provider"]["head_ip"]
    assert config["min_workers"] == config["max_workers"] == len(config["provider"]["worker_ips"])
