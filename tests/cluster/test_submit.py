"""Jobs on a real cluster, by the commands a person gives: sent, followed, stopped, refused, and nothing left behind."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from interrupts import heed_interrupts
from ray_nodes import Nodes, free_port

from bts_dist.compose import load_config

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
CANARIES = {
    "AWS_ACCESS_KEY_ID": "canary-51d0-key",
    "AWS_SECRET_ACCESS_KEY": "canary-51d0-secret",
    "WANDB_API_KEY": "canary-51d0-wandb",
}
"""Credentials of the machine that submits; the cluster has none of them."""
TINY = [
    "data.image_size=32",
    "model.features=4",
    "model.depth=3",
    "model.norm=group",
    "train.epochs=4000",
    "train.global_batch=8",
    "train.precision=fp32",
    "train.threads=1",
    "track.wandb=disabled",
    "cluster.workers=1",
    "pack.workers=1",
]


NO_TOKEN = "asks for a token and this machine has none; put the cluster's"


@dataclass
class Head:
    """A cluster, and the machine outside it that gives commands."""

    nodes: Nodes
    url: str

    def bts(self, *words: str, code: int = 0, checkout: Path = ROOT, **environment: str) -> str:
        """Give a command and wait; what it printed."""
        done = subprocess.run(
            self._line(words),
            capture_output=True,
            text=True,
            env=self._environment({"PYTHONPATH": str(checkout), **environment}),
            cwd=checkout,
            timeout=300,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def start(self, output: Path, *words: str) -> "subprocess.Popen[str]":
        with output.open("w") as file:
            return subprocess.Popen(
                self._line(words),
                stdout=file,
                stderr=file,
                text=True,
                env=self._environment({}),
                preexec_fn=heed_interrupts,
            )

    def _line(self, words: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "cluster.cli", *words]

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        own = {"RAY_API_SERVER_ADDRESS": self.url, "PYTHONPATH": str(ROOT), "COLUMNS": "300"}
        return {**self.nodes.environment, **CANARIES, **own, **more}

    def read(self, path: str) -> Any:
        headers = {"Authorization": f"Bearer {self.nodes.token}"}
        answer = requests.get(self.url + path, headers=headers, timeout=60)
        answer.raise_for_status()
        return answer.json()

    def job(self, job_id: str) -> Any:
        return self.read(f"/api/jobs/{job_id}")

    def run_aside(self, command: str) -> str:
        """Submit a command of no stage; its job's id."""
        code = (
            "from cluster.dashboard import Dashboard; import sys; "
            "print(Dashboard(sys.argv[1]).submit_job(entrypoint=sys.argv[2], "
            "runtime_env={'env_vars': {'RAY_JOB_STOP_WAIT_TIME_S': '20'}}))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, self.url, command],
            capture_output=True,
            text=True,
            env=self._environment({}),
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()[-1]


def wait_for(what: str, until: Callable[[], Any], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, f"still no {what}"
        time.sleep(0.3)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("ray") / "r"
    folder.mkdir()
    nodes = Nodes(free_port(), folder)
    try:
        nodes.start_head()
        nodes.add()
        yield Head(nodes, nodes.dashboard)
    finally:
        nodes.stop()


def options(*sets: str) -> list[str]:
    return [word for text in sets for word in ("--set", text)]


def job_id(printed: str) -> str:
    found = re.search(r"job ([a-z]+-[0-9a-f]{8})", printed)
    assert found, printed
    return found[1]


def test_a_stage_runs_there_as_it_was_configured_here_and_no_credential_travels(
    head: Head, phantom: Path, packed: Path, tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    (tmp_path / "a.yaml").write_text(
        f"data: {{source: {tmp_path}/nothing, shards: {shards}}}\npack: {{samples_per_shard: 16}}\n"
        "split: {train: 0.6, val: 0.2, test: 0.2}\ncluster: {workers: 1}\n"
    )
    printed = head.bts(
        "submit", "pack", "--config", str(tmp_path / "a.yaml"), *options(f"data.source={phantom}"), "--wait"
    )
    job = job_id(printed)
    assert f"{phantom}: 10 patients" in printed
    assert f"job {job} is done" in printed
    details = head.job(job)
    assert details["status"] == "SUCCEEDED"
    assert details["metadata"] == {"stage": "pack", "run": str(shards)}
    # Byte for byte what the command gives here.
    made, expected = ({p.name: p.read_bytes() for p in at.rglob("*.*")} for at in (shards, packed))
    assert {name for name in made.keys() | expected.keys() if made.get(name) != expected.get(name)} == set()
    # The log once, and the whole of it.
    assert head.bts("logs", job) in printed

    told = json.dumps(head.read("/api/jobs/"))
    kept = [p for p in head.nodes.folder.rglob("*") if p.is_file()]
    # The folder that travelled is among them.
    sent = next(load_config([p]) for p in kept if p.name == "config.yaml")
    assert (sent.run.name, sent.data.source, sent.data.shards) == (None, str(phantom), str(shards))
    for secret in [*CANARIES.values(), head.nodes.token]:
        assert secret not in printed + told
        assert [p for p in kept if secret.encode() in p.read_bytes()] == []


def test_bad_input_there_is_bad_input_here(head: Head, tmp_path: Path) -> None:
    printed = head.bts("submit", "verify", *options(f"data.source={tmp_path}/none"), "--wait", code=2)
    assert f"{tmp_path}/none" in printed.splitlines()[-1]
    assert "failed with exit code 2" in printed.splitlines()[-1]


def test_a_job_that_dies_at_import_names_the_package(head: Head, tmp_path: Path) -> None:
    for name in ("shards", "bts_dist", "cluster"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "cluster" / "stages.py").open("a") as file:
        file.write("\nimport a_package_of_nobody\n")
    printed = head.bts("submit", "verify", "--wait", code=1, checkout=tmp_path)
    cause, remedy = printed.splitlines()[-2:]
    assert "failed with exit code 1" in cause
    assert "No module named 'a_package_of_nobody'" in cause
    assert "a_package_of_nobody" in remedy
    assert "every node" in remedy


def test_ctrl_c_stops_the_job_and_leaves_nothing_on_the_cluster(
    head: Head, packed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    sets = options(*TINY, f"data.shards={packed}", f"run.dir={tmp_path}/runs", "run.name=long")
    waiting = head.start(output, "submit", "train", *sets, "--wait")
    wait_for("epoch", lambda: "epoch 2/4000" in output.read_text() or waiting.poll() is not None, 200)
    job = job_id(output.read_text())

    status = head.bts("status")
    assert re.search(r"alive +│ 1/1 ", status), status
    assert re.search(rf"{job} +│ train +│ {tmp_path}/runs/long +│ .* (?:epoch|\d+%) ", status), status
    assert re.search(rf"{job} +│ train +│ {tmp_path}/runs/long +│ running", head.bts("jobs"))
    following = head.start(tmp_path / "followed", "logs", job, "-f")
    wait_for("log", lambda: "epoch 2/4000" in (tmp_path / "followed").read_text())
    following.send_signal(signal.SIGINT)
    assert following.wait(60) == 130
    assert head.job(job)["status"] == "RUNNING"

    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(120) == 130, output.read_text()
    assert "stopping the job" in output.read_text()
    assert "interrupted" in output.read_text()
    assert head.job(job)["status"] == "STOPPED"
    wait_for("free CPU", lambda: _used(head) == 0, 60)
    assert _left(head) == []


def test_a_second_ctrl_c_does_not_wait_and_the_job_ends_all_the_same(head: Head, tmp_path: Path) -> None:
    code = "from cluster import cli, submit; submit.STOP_WAIT_S = 20; "
    code += "submit.entrypoint = lambda *_: \"trap '' TERM; for i in 1 2 3 4 5 6 7 8 9; do sleep 30; done\"; "
    code += "cli.main(['submit', 'report', '--set=run.name=deaf', '--wait'])"
    output = tmp_path / "output"
    with output.open("w") as file:
        waiting = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=file,
            stderr=file,
            env=head._environment({}),
            preexec_fn=heed_interrupts,
        )
    wait_for("log", lambda: "Running entrypoint" in output.read_text())
    job = job_id(output.read_text())
    waiting.send_signal(signal.SIGINT)
    wait_for("answer", lambda: "Ctrl-C again" in output.read_text())
    time.sleep(1)
    assert waiting.poll() is None
    began = time.monotonic()
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(60) == 130
    assert time.monotonic() - began < 10
    assert "left; the job was told to stop" in output.read_text()
    # It heeds no SIGTERM: Ray kills it when its time is up.
    wait_for("end", lambda: head.job(job)["status"] == "STOPPED", 60)
    assert _left(head) == []


def test_ctrl_c_in_a_cross_validation_leaves_nothing_on_the_cluster(
    head: Head, phantom: Path, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    places = [f"data.source={phantom}", f"data.shards={tmp_path}/shards", f"run.dir={tmp_path}/runs"]
    folds = ["run.name=folds", "split.fold=all", "split.folds=3"]
    waiting = head.start(output, "submit", "run", *options(*TINY, *places, *folds), "--wait")
    try:
        wait_for("fold", lambda: "fold 0  verify" in output.read_text() or waiting.poll() is not None)
        fold = [command for command in _commands(head) if "fold-0.yaml" in command]
        assert fold, output.read_text()
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(120) == 130, output.read_text()
    finally:
        waiting.kill()
    assert head.job(job_id(output.read_text()))["status"] == "STOPPED"
    wait_for("free CPU", lambda: _used(head) == 0, 60)
    assert _left(head) == []


def test_stop_waits_for_the_end(head: Head) -> None:
    job = head.run_aside("echo begun; sleep 300")
    wait_for("run", lambda: head.job(job)["status"] == "RUNNING")
    near = job.replace("raysubmit", "raysumbit")
    assert f"did you mean {job}?" in head.bts("stop", near, code=2)
    assert f"job {job}: stopped" in head.bts("stop", job)
    assert head.job(job)["status"] == "STOPPED"
    assert "begun" in head.bts("logs", job, "-f")


@pytest.mark.parametrize(
    ("variables", "what"),
    [
        ({"RAY_AUTH_TOKEN": "0" * 32}, "refuses this machine's token; put the cluster's own"),
        ({"RAY_AUTH_MODE": "disabled"}, NO_TOKEN),
        ({"RAY_AUTH_MODE": "token"}, NO_TOKEN),
        ({"RAY_AUTH_MODE": "token", "HOME": "with an empty file"}, NO_TOKEN),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/nonexistent"}, NO_TOKEN),
    ],
    ids=["wrong", "disabled", "none", "empty", "nowhere"],
)
@pytest.mark.parametrize("by", ["dashboard", "head"])
def test_a_cluster_that_is_not_ours(
    head: Head, by: str, variables: dict[str, str], what: str, tmp_path: Path
) -> None:
    if "HOME" in variables:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").touch()
        variables = {**variables, "HOME": str(tmp_path)}
    address = {"dashboard": head.url, "head": head.nodes.address}[by]
    environment = {"RAY_AUTH_TOKEN": "", "HOME": "/nonexistent", **variables}
    told = head.bts("jobs", "--set", f"cluster.address={address}", code=2, **environment).splitlines()
    assert f"the cluster at {address} {what}" in told[-1]
    assert "`ray get-auth-token` prints on its head" in told[-1]
    # Of a token that its head refuses Ray's C++ tells too.
    assert len([line for line in told if "InvalidAuthToken" not in line]) == 1, told


def test_a_cluster_that_is_not_there(head: Head) -> None:
    nowhere = head.bts("status", "--address", f"127.0.0.1:{free_port()}", code=2)
    assert "no Ray dashboard answers at http://127.0.0.1" in nowhere
    assert len(nowhere.splitlines()) == 1, nowhere


def test_a_stage_does_not_join_a_cluster_that_is_not_ours(head: Head) -> None:
    setting = f"cluster.address={head.nodes.address}"
    began = time.monotonic()
    told = head.bts("doctor", "--set", setting, code=1, RAY_AUTH_TOKEN="0" * 32)
    assert f"the cluster at {setting} refuses this machine's token" in " ".join(told.split())
    assert time.monotonic() - began < 60


def _used(head: Head) -> float:
    status = head.read("/api/cluster_status")["data"]["clusterStatus"]
    return float(status["loadMetricsReport"]["usage"]["CPU"][0])


def _left(head: Head) -> list[str]:
    """What jobs left on the cluster: actors, placement groups and processes."""
    actors = head.read("/api/v0/actors?detail=1")["data"]["result"]["result"]
    groups = head.read("/api/v0/placement_groups?detail=1")["data"]["result"]["result"]
    found = [
        actor["class_name"]
        for actor in actors
        # Ray keeps one of its own for all jobs to come; it holds no CPU.
        if actor["state"] != "DEAD" and actor["class_name"] != "_AutoscalingCoordinatorActor"
    ]
    found += [group["state"] for group in groups if group["state"] != "REMOVED"]
    own = ("cluster.cli", "RayTrainWorker", "sleep 30")
    return [*found, *(c for c in _commands(head) if any(word in c for word in own))]


def _commands(head: Head) -> list[str]:
    """All that runs on the cluster, orphans too."""
    return [command for node in head.nodes.nodes for command in node.commands()]
