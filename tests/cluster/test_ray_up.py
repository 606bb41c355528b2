"""``ray up`` as it runs, up to the border of what is not ours: AWS's answers and the ssh connection are stand-ins.

On the near side of the border everything is real: Ray's launcher, its providers, and boto3, which checks each request
against AWS's own description of EC2.
"""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from cluster_files import AWS, LOCAL, ROOT, launcher
from ray.autoscaler._private import commands, util
from ray.autoscaler._private.aws import config as aws_config
from ray.autoscaler._private.aws import node_provider, utils
from ray.autoscaler._private.local import node_provider as local_provider
from ray.autoscaler._private.updater import NodeUpdaterThread

from bts_dist.compose import load_config

MACHINES = {
    "m7i.xlarge": (4, 16, []),
    "m7i.4xlarge": (16, 64, []),
    "g6.12xlarge": (48, 192, [{"Name": "L4", "Manufacturer": "NVIDIA", "Count": 4}]),
}
"""CPUs, GiB and GPUs of the instance types, as AWS lists them."""


class Ec2:
    """AWS's answers to what Ray asks.  The requests themselves are kept."""

    def __init__(self, zone: str) -> None:
        self.zone = zone
        self.requests: list[tuple[str, dict[str, Any]]] = []

    def keep(self, params: dict[str, Any], model: Any, **_: Any) -> None:
        self.requests.append((model.name, params))

    def answer(self, model: Any, **_: Any) -> tuple[AWSResponse, dict[str, Any]]:
        answers: dict[str, dict[str, Any]] = {
            "DescribeInstanceTypes": {"InstanceTypes": [_instance_type(*m) for m in MACHINES.items()]},
            "DescribeKeyPairs": {"KeyPairs": []},
            "CreateKeyPair": {"KeyName": "ray", "KeyMaterial": "a private key"},
            "DescribeSecurityGroups": {
                "SecurityGroups": [{"GroupId": "sg-0123456789abcdef0", "VpcId": "vpc-1"}]
            },
            "DescribeSubnets": {
                "Subnets": [_subnet("subnet-1", self.zone), _subnet("subnet-2", "elsewhere")]
            },
            "DescribeInstances": {"Reservations": self._machines()},
            "RunInstances": {"Instances": [_machine({})]},
            "CreateTags": {},
        }
        return AWSResponse("https://ec2", 200, {}, None), answers[model.name]

    def sent(self, operation: str) -> list[dict[str, Any]]:
        return [params for name, params in self.requests if name == operation]

    def _machines(self) -> list[dict[str, Any]]:
        """The machine that was started last."""
        return [{"Instances": [_machine(p) for p in self.sent("RunInstances")[-1:]]}]


class Shell:
    """Keeps what would be run over ssh, and lets it succeed."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def check_call(self, command: list[str], **_: Any) -> int:
        self.lines.append(" ".join(command))
        return 0

    def check_output(self, command: list[str], **_: Any) -> bytes:
        self.lines.append(" ".join(command))
        return b""

    def order(self, *parts: str) -> list[int]:
        """Where each text first appears."""
        return [next(i for i, line in enumerate(self.lines) if part in line) for part in parts]


def _instance_type(name: str, machine: tuple[int, int, list[dict[str, Any]]]) -> dict[str, Any]:
    cpus, gib, gpus = machine
    described: dict[str, Any] = {"InstanceType": name, "VCpuInfo": {"DefaultVCpus": cpus}}
    described["MemoryInfo"] = {"SizeInMiB": 1024 * gib}
    return described | ({"GpuInfo": {"Gpus": gpus}} if gpus else {})


def _subnet(name: str, zone: str) -> dict[str, Any]:
    return {
        "SubnetId": name,
        "VpcId": "vpc-1",
        "State": "available",
        "MapPublicIpOnLaunch": True,
        "AvailabilityZone": zone,
    }


def _machine(request: dict[str, Any]) -> dict[str, Any]:
    tags = [tag for spec in request.get("TagSpecifications", []) for tag in spec["Tags"]]
    return {
        "InstanceId": "i-1",
        "State": {"Name": "running"},
        "PublicIpAddress": "203.0.113.9",
        "PrivateIpAddress": "10.0.0.9",
        "Tags": tags,
    }


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who has followed the comments: a wheel, a token and keys; the folder is the repository's."""
    folder = tmp_path / "home"
    for place in (folder / ".ray" / "auth_token", folder / ".bts" / "keys"):
        place.parent.mkdir(parents=True)
        place.write_text("secret", encoding="utf-8")
    monkeypatch.setenv("HOME", str(folder))
    for name in ("constraints.txt", "configs"):
        (tmp_path / name).symlink_to(AWS.parent / name)
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "bts_dist-0.1.0-py3-none-any.whl").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    return folder


@pytest.fixture
def ec2(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ec2]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "nobody's")
    monkeypatch.setattr(node_provider, "TAG_BATCH_DELAY", 0)
    caches = (utils.resource_cache, utils.client_cache, aws_config._get_subnets_or_die)
    session = boto3.Session()
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", session)
    aws = Ec2(launcher(AWS)["provider"]["availability_zone"])
    session.events.register("before-parameter-build.ec2", aws.keep)
    session.events.register("before-call.ec2", aws.answer)
    for cache in caches:
        cache.cache_clear()
    yield aws
    for cache in caches:
        cache.cache_clear()


def start_head(path: Path, config: dict[str, Any]) -> Shell:
    """What ``ray up`` does after it has worked out the config: the head is had, set up and started."""
    shell = Shell()
    commands.get_or_create_head_node(config, str(path), False, False, True, None, _runner=shell)
    return shell


def start_worker(config: dict[str, Any], provider: Any, node: str) -> Shell:
    """What the autoscaler on the head does with a new machine."""
    shell = Shell()
    updater = NodeUpdaterThread(
        node_id=node,
        provider_config=config["provider"],
        provider=provider,
        auth_config=config["auth"],
        cluster_name=config["cluster_name"],
        file_mounts=config["file_mounts"],
        initialization_commands=config["initialization_commands"],
        setup_commands=config["worker_setup_commands"],
        ray_start_commands=config["worker_start_ray_commands"],
        runtime_hash="new",
        file_mounts_contents_hash="new",
        is_head_node=False,
        process_runner=shell,
    )
    updater.run()
    assert updater.exitcode == 0
    return shell


def test_aws_works_out_what_is_left_open(ec2: Ec2, home: Path) -> None:
    config = commands._bootstrap_config(launcher(AWS), no_config_cache=True)
    types = config["available_node_types"]
    assert types["head"]["resources"]["CPU"] == 0
    assert {
        n: (t["resources"]["CPU"], t["resources"].get("GPU")) for n, t in types.items() if n != "head"
    } == {
        "cpu": (16, None),
        "gpu": (48, 4),
        "gpu_spot": (48, 4),
    }
    gpus = sum(t["max_workers"] * t["resources"].get("GPU", 0) for t in types.values())
    job = load_config([ROOT / "configs" / "lgg.yaml", ROOT / "configs" / "cluster-gpu.yaml"]).cluster
    assert job.most * job.gpus_per_worker <= gpus
    assert job.cpus_per_worker / job.gpus_per_worker <= 48 / 4
    for node in types.values():
        assert node["node_config"]["SubnetIds"] == ["subnet-1"], "in the zone that the file names"
        assert node["node_config"]["ImageId"].startswith("resolve:ssm:/aws/service/"), "not Ray's old default"
    (key,) = (home / ".ssh").iterdir()
    assert key.stat().st_mode & 0o777 == 0o600
    # Neither roles nor groups are made: those that the file names are used.
    made = {name for name, _ in ec2.requests if not name.startswith("Describe")}
    assert made == {"CreateKeyPair"}


def test_aws_understands_the_request_for_each_group(ec2: Ec2) -> None:
    config = commands._bootstrap_config(launcher(AWS), no_config_cache=True)
    provider = node_provider.AWSNodeProvider(config["provider"], config["cluster_name"])
    for name, node in config["available_node_types"].items():
        tags = {"ray-node-type": "worker", "ray-user-node-type": name, "ray-launch-config": "x"}
        provider.create_node(node["node_config"], tags, 1)
    requests = ec2.sent("RunInstances")
    assert [r["InstanceType"] for r in requests] == [
        "m7i.xlarge",
        "m7i.4xlarge",
        "g6.12xlarge",
        "g6.12xlarge",
    ]
    assert ["InstanceMarketOptions" in r for r in requests] == [False, False, False, True]
    for request in requests:
        interface = request.get("NetworkInterfaces", [request])[0]
        assert (interface.get("Groups") or request["SecurityGroupIds"]) == ["sg-0123456789abcdef0"]


def test_boto3_would_notice_a_misspelt_request(ec2: Ec2) -> None:
    config = launcher(AWS)
    config["available_node_types"]["gpu"]["node_config"]["BlockDeviceMapping"] = []
    config = commands._bootstrap_config(config, no_config_cache=True)
    provider = node_provider.AWSNodeProvider(config["provider"], config["cluster_name"])
    with pytest.raises(Exception, match='Unknown parameter in input: "BlockDeviceMapping"'):
        provider.create_node(
            config["available_node_types"]["gpu"]["node_config"],
            {"ray-node-type": "worker", "ray-launch-config": "x"},
            1,
        )


def test_an_aws_head_gets_the_token_first_and_ray_last(ec2: Ec2) -> None:
    config = commands._bootstrap_config(launcher(AWS), no_config_cache=True)
    shell = start_head(AWS, config)
    steps = shell.order(".ray/auth_token ubuntu@", "chmod 600", "venv", "--no-deps", "ray start --head")
    assert steps == sorted(steps)
    assert len([line for line in shell.lines if "pip install" in line]) == 2, (
        "the wheel, and nothing of Ray's choice"
    )
    (start,) = (line for line in shell.lines if "ray start --head" in line)
    assert "RAY_enable_autoscaler_v2" in start
    assert "RAY_NODE_TYPE_NAME=" in start, "by which the job knows that the cluster can grow"


def test_an_aws_worker_watches_for_its_notice(ec2: Ec2) -> None:
    config = commands._bootstrap_config(launcher(AWS), no_config_cache=True)
    provider = node_provider.AWSNodeProvider(config["provider"], config["cluster_name"])
    tags = {"ray-node-type": "worker", "ray-launch-config": "x", "ray-node-status": "uninitialized"}
    provider.create_node(config["available_node_types"]["gpu_spot"]["node_config"], tags, 1)
    shell = start_worker(config, provider, *provider.non_terminated_nodes({}))
    steps = shell.order(".ray/auth_token ubuntu@", "--no-deps", "ray start --address=", "cluster.notice spot")
    assert steps == sorted(steps)
    assert not any("ray_bootstrap_key" in line for line in shell.lines), (
        "the key to all machines stays on the head"
    )


@pytest.fixture
def local_state(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("get_state_path", "get_lock_path"):
        monkeypatch.setattr(
            local_provider, name, lambda cluster, name=name: str(tmp_path / f"{cluster}-{name}")
        )
    (home / ".ssh").mkdir()
    (home / ".ssh" / "id_ed25519").write_text("a private key", encoding="utf-8")


@pytest.mark.usefixtures("local_state")
def test_ones_own_machines_are_set_up_one_and_all() -> None:
    config = commands._bootstrap_config(launcher(LOCAL), no_config_cache=True)
    head = start_head(LOCAL, config)
    steps = head.order(".ray/auth_token ubuntu@10.0.0.10", "chmod 600", "--no-deps", "ray start --head")
    assert steps == sorted(steps)
    # The second autoscaler leaves out a machine (tests/e2e/test_ray_up_hosts.py); what stands last counts.
    (start,) = (line for line in head.lines if "ray start --head" in line)
    assert re.findall(r"RAY_enable_autoscaler_v2=(\d)", start) == ["1", "0"]
    provider = local_provider.LocalNodeProvider(config["provider"], config["cluster_name"])
    for address in config["provider"]["worker_ips"]:
        provider.create_node({}, {"ray-node-type": "worker", "ray-user-node-type": "local.cluster.node"}, 1)
        shell = start_worker(config, provider, address)
        steps = shell.order(f".ray/auth_token ubuntu@{address}", "--no-deps", "ray start --address=")
        assert steps == sorted(steps)
        steps = shell.order(f".bts/keys ubuntu@{address}", "set -a; . ~/.bts/keys", "ray start --address=")
        assert steps == sorted(steps)
        (start,) = (line for line in shell.lines if "ray start" in line)
        assert "source ~/.bashrc" in start, "by which Ray's processes have the keys"


@pytest.mark.usefixtures("local_state")
def test_a_forgotten_wheel_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(util, "_hash_cache", {})  # of a new process
    (tmp_path / "dist").rename(tmp_path / "elsewhere")
    config = commands._bootstrap_config(launcher(LOCAL), no_config_cache=True)
    with pytest.raises(FileNotFoundError, match="dist"):
        start_head(LOCAL, config)


def test_every_command_is_shell() -> None:
    for path in (AWS, LOCAL):
        config = launcher(path)
        for key in ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
            for command in config[key]:
                done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
                assert (done.returncode, done.stderr) == (0, ""), SimpleNamespace(path=path, command=command)
