"""Jobs from outside on a cluster of several hosts: each has an address and files of its own, and all that they share is
an S3 server on the network, whose keys they alone have."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import boto3
import pytest
import torch
from hosts import Network, obstacle
from interrupts import heed_interrupts
from ray_hosts import RayHosts
from swift_server import SwiftServer
from wandb_log import OfflineRun, read_all

from bts_dist import commit
from bts_dist.compose import load_config
from bts_dist.runtime import LocalRuntime
from bts_dist.track import METRICS, read_metrics, wandb_id
from bts_dist.train import train
from shards.store import LocalStore, ObjectStore, open_store

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.hosts,
    pytest.mark.ray,
    pytest.mark.s3,
    pytest.mark.timeout(600),
]

Bts = Callable[..., subprocess.CompletedProcess[str]]

BTS = str(Path(sys.executable).with_name("bts"))
BUCKET = "s3://bts-hosts"
EPOCHS = 2
CONFIG = f"""
data: {{source: "{BUCKET}/raw", shards: "{BUCKET}/shards", image_size: 32}}
split: {{train: 0.6, val: 0.2, test: 0.2}}
pack: {{samples_per_shard: 4}}
model: {{features: 4, depth: 3, norm: group}}
optim: {{lr: 0.005}}
schedule: {{kind: constant}}
train: {{epochs: {EPOCHS}, global_batch: 6, precision: fp32, threads: 1, log_every: 1}}
score: {{bootstrap: 100}}
track: {{overlays: 1}}
cluster: {{workers: 2}}
run: {{dir: "{BUCKET}/runs"}}
"""
COMMIT = "0123456789abcdef0123456789abcdef01234567"
"""Of the code as the machine outside says it, which alone could ask a repository."""
NOTICES_SOON = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "4",
}
"""Have a host's silence noticed in seconds, where Ray takes more than a minute (docs/operations.md)."""


@dataclass
class Cluster:
    """Ray's hosts, and the way in from outside: with the token, without the keys of the store."""

    ray: RayHosts
    config: Path
    environment: Mapping[str, str]

    def options(self, *sets: str) -> list[str]:
        return [f"--config={self.config}", *(f"--set={value}" for value in sets)]

    def command(self, stage: str, *sets: str) -> list[str]:
        """A stage as a job, followed to its end."""
        return [BTS, "submit", stage, *self.options(*sets), f"--address={self.ray.dashboard}", "--wait"]

    def submit(self, stage: str, *sets: str) -> str:
        """Run a stage as a job; what is told outside."""
        done = subprocess.run(
            self.command(stage, *sets), env=self.environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def state(self, what: str) -> list[dict[str, Any]]:
        """What the dashboard tells of all ``actors`` or ``nodes``."""
        url = f"{self.ray.dashboard}/api/v0/{what}?detail=1&limit=1000"
        request = Request(url, headers={"Authorization": f"Bearer {self.ray.token}"})
        with urlopen(request, timeout=30) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]["result"]
        return found


@pytest.fixture(scope="module")
def cluster(
    request: pytest.FixtureRequest, folder: Path, bts: Bts, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """A head and two hosts with one CPU each, beside a store with the shards of a phantom."""
    reason = obstacle()
    if reason is not None:
        pytest.skip(reason)
    place = tmp_path_factory.mktemp("h")
    inside = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    with (
        Network(place, inside) as network,
        SwiftServer(request.getfixturevalue("swift"), place / "swift", network.address) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        ray = RayHosts(network)
        outside = inside | ray.access | {commit.VARIABLE: COMMIT}
        inside |= (
            ray.inside | server.environment | NOTICES_SOON | {"XDG_CACHE_HOME": str(network.own / "cache")}
        )
        ray.start_head()
        hosts = [ray.add("one"), ray.add("two")]
        # Tests look at the store as its owner does.
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in {**server.environment, "XDG_CACHE_HOME": str(place / "cache")}.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket=BUCKET.removeprefix("s3://"))
        raw = folder / "raw"
        for path in sorted(raw.rglob("*.tif")):
            open_store(f"{BUCKET}/raw").put(path.relative_to(raw).as_posix(), path)
        ray.wait(*hosts)
        config = place / "hosts.yaml"
        config.write_text(CONFIG)
        made = Cluster(ray, config, outside)
        made.submit("pack")
        yield made


@pytest.fixture(scope="module")
def trained(cluster: Cluster) -> tuple[ObjectStore, str]:
    """A run that a job has trained on both hosts, and what it told outside."""
    told = cluster.submit("train", "run.name=two")
    return open_store(f"{BUCKET}/runs/two"), told


def losses(run: ObjectStore) -> list[float]:
    return [row["loss"] for row in read_metrics(run, "step")]


def test_ddp_over_two_hosts_learns_what_it_learns_on_one_machine(
    cluster: Cluster, trained: tuple[ObjectStore, str], folder: Path, bts: Bts
) -> None:
    run, told = trained
    assert f"epoch {EPOCHS}/{EPOCHS}" in told, "the record of a rank elsewhere is shown outside"
    torchrun = ["--standalone", "--nproc-per-node=2", "--no-python", BTS, "train"]
    here = cluster.options(f"run.dir={folder}/runs", "run.name=here", "cluster.runtime=torchrun")
    bts(folder, *torchrun, *here, program="torchrun")
    expected = losses(open_store(f"{folder}/runs/here"))
    assert len(expected) > EPOCHS
    assert losses(run) == pytest.approx(expected, abs=1e-6)


def test_each_rank_has_an_address_and_reads_the_store_itself(
    cluster: Cluster, trained: tuple[ObjectStore, str]
) -> None:
    hosts = [cluster.ray.network.hosts[name] for name in ("one", "two")]
    addresses = {node["node_id"]: node["node_ip"] for node in cluster.state("nodes")}
    ranks = [actor for actor in cluster.state("actors") if actor["class_name"] == "RayTrainWorker"]
    assert sorted(addresses[rank["node_id"]] for rank in ranks) == sorted(host.address for host in hosts)
    # Had they gone by their hosts' names, each would have found itself.
    assert [host.run("getent", "hosts", host.name).split()[0] for host in hosts] == ["127.0.1.1"] * 2
    # Each host has fetched the shards that its rank read, and the head none.
    kept = {
        host.name: len(list((host.own / "cache").glob("bts-dist/*.tar")))
        for host in cluster.ray.network.hosts.values()
    }
    assert kept["head"] == 0
    assert kept["one"] > 2
    assert kept["two"] > 2
    keys = [entry.key for entry in trained[0].list("checkpoints/")]
    assert sum(key.endswith("model.safetensors") for key in keys) == EPOCHS
    assert trained[0].list("ray/") == [], "nothing of Ray's own notes is left"


@pytest.fixture(scope="module")
def scored(cluster: Cluster, trained: tuple[ObjectStore, str]) -> ObjectStore:
    """The run, scored by another job."""
    cluster.submit("score", "run.name=two")
    return trained[0]


def test_the_model_is_scored_by_a_job(scored: ObjectStore) -> None:
    score = json.loads(scored.get("score/score.json"))
    manifest = json.loads(open_store(f"{BUCKET}/shards").get("manifest.json"))
    assert [patient["patient"] for patient in score["patients"]] == sorted(manifest["patients"]["test"])
    assert [row["choice"] for row in score["inference"]["rows"]] == [
        "mirror",
        "ensemble",
        "threshold",
        "components",
    ]


def test_the_offline_record_reads_back(scored: ObjectStore, tmp_path: Path) -> None:
    run = scored
    (log,) = wandb_logs(run, tmp_path)
    assert log.exit_code == 0
    assert log.name == "two"
    assert log.commit == COMMIT
    assert log.config["model"]["features"] == 4
    assert log.config["data"]["shards"] == f"{BUCKET}/shards"
    check_history([log], run)
    last = read_metrics(run, "epoch")[-1]
    assert log.summary["val/dice/patient"] == pytest.approx(last["val/dice/patient"])
    assert list(tmp_path.rglob("media/images/val/*.png")), "predictions are drawn"
    assert {key.split("/")[1] for key in log.history[-1] if key.startswith("system/")} == {"node-0", "node-1"}
    ((data,), models) = (
        [each for each in log.artifacts if each.kind == kind] for kind in ("dataset", "model")
    )
    assert {alias for model in models for alias in model.aliases} >= {"best", "last"}
    assert all(uri.startswith(f"{BUCKET}/shards/") for uri, _, _ in data.files.values())

    (log,) = read_all(tmp_path, f"{wandb_id(run)}-score")
    assert (log.job_type, log.group, log.exit_code, log.commit) == ("score", "two", 0, COMMIT)
    score = json.loads(run.get("score/score.json"))
    assert log.summary["dice/patient"] == pytest.approx(score["metrics"]["dice/patient"]["mean"])
    (table,) = (json.loads(path.read_text()) for path in tmp_path.rglob("media/table/patients*.table.json"))
    at = table["columns"].index("dice")
    assert sorted(row[at] for row in table["data"]) == sorted(p["dice"] for p in score["patients"])
    assert {each.name for each in log.artifacts if each.used} == {data.name, models[0].name}
    (made,) = (each for each in log.artifacts if each.kind == "score")
    assert {uri for uri, _, _ in made.files.values()} == {
        f"{run.uri}/score/{name}" for name in ("score.json", "patients.csv")
    }


def test_torchrun_trains_over_two_hosts(cluster: Cluster, trained: tuple[ObjectStore, str]) -> None:
    one, two = (cluster.ray.network.hosts[name] for name in ("one", "two"))
    options = cluster.options("run.name=torchrun", "cluster.runtime=torchrun", "track.wandb=disabled")
    processes = [
        host.start(
            Path(sys.executable).with_name("torchrun"),
            *("--nnodes=2", f"--node-rank={rank}", f"--master-addr={one.address}", "--master-port=29400"),
            *("--nproc-per-node=1", "--no-python", BTS, "train", *options),
        )
        for rank, host in enumerate((one, two))
    ]
    for process, host in zip(processes, (one, two), strict=True):
        assert process.wait(120) == 0, host.log.read_text()[-4000:]
    assert losses(open_store(f"{BUCKET}/runs/torchrun")) == pytest.approx(losses(trained[0]), abs=1e-6)


def test_a_host_that_comes_takes_part_and_one_that_is_cut_off_is_done_without(
    cluster: Cluster, tmp_path: Path
) -> None:
    ray, run = cluster.ray, open_store(f"{BUCKET}/runs/changing")
    sets = ["run.name=changing", "train.deterministic=true", "train.checkpoint_steps=5"]
    limits = ["cluster.workers=[2, 3]", "cluster.resize_s=5", "cluster.frozen_s=10"]
    with watching(cluster, run, tmp_path, *sets, *limits, "train.epochs=1000") as watch:
        watch.wait("two workers", lambda: "2 worker(s)" in watch.notes() and watch.step() > 3)

        ray.wait(ray.add("three"))
        watch.wait("a third worker", lambda: "3 worker(s)" in watch.notes() and len(watch.recoveries()) == 1)
        assert "the cluster has room for 3 workers" in watch.notes()

        # The one with rank 0, whose part of the record then goes on elsewhere.
        first = max(ray.network.hosts.values(), key=lambda host: _recorded_at(host.own))
        first.cut_off()
        watch.wait("a recovery", lambda: len(watch.recoveries()) == 2)
        lost = rf"rank 0 \(process \d+ on {re.escape(first.address)}\) (gave no sign of life|was lost)"
        assert re.search(lost, watch.notes())
        assert "2 worker(s)" in watch.notes().rpartition("3 worker(s)")[2]
        print(f"\n{watch.notes()}")  # the figures of docs/operations.md
        assert watch.interrupt() == 130

    end = read_metrics(run, "epoch")[-1]["epoch"] + 1
    cluster.submit("train", *sets, f"train.epochs={end}")
    assert [row["epoch"] for row in read_metrics(run, "epoch")] == list(range(1, end + 1))
    check_history(wandb_logs(run, tmp_path), run)
    # Without any fault, on one machine, every step has the very same loss.
    alone = LocalStore(str(tmp_path / "alone"), tmp_path / "alone")
    config = load_config([cluster.config], [*sets, "track.wandb=disabled", f"train.epochs={end}"])
    train(config, LocalRuntime(0, 1, 0, torch.device("cpu")), alone, alone.root)
    assert losses(run) == losses(alone)


@dataclass
class Watch:
    """A job's run, and the command that follows it, seen from outside."""

    run: ObjectStore
    process: "subprocess.Popen[str]"
    output: Path

    def step(self) -> int:
        return max((row["step"] for row in read_metrics(self.run, "step")), default=0)

    def notes(self) -> str:
        return "\n".join(row["text"] for row in read_metrics(self.run, "note"))

    def recoveries(self) -> list[dict[str, Any]]:
        return read_metrics(self.run, "recovery")

    def wait(self, what: str, until: Callable[[], bool]) -> None:
        end = time.monotonic() + 150
        while not until():
            assert self.process.poll() is None, f"ended before {what}:\n{self.output.read_text()}"
            assert time.monotonic() < end, f"still no {what}:\n{self.output.read_text()}\n{self.notes()}"
            time.sleep(0.5)

    def interrupt(self) -> int:
        """Ctrl-C, which stops the job too."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(90)


@contextmanager
def watching(cluster: Cluster, run: ObjectStore, folder: Path, *sets: str) -> Iterator[Watch]:
    """A training that is submitted and followed."""
    output = folder / "output.txt"
    process = subprocess.Popen(
        cluster.command("train", *sets),
        env=cluster.environment,
        stdout=output.open("w"),
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=heed_interrupts,
    )
    try:
        yield Watch(run, process, output)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _recorded_at(own: Path) -> float:
    """When a rank 0 last wrote its record there, in seconds of Unix time; 0 where none has."""
    return max((path.stat().st_mtime for path in own.glob(f"cache/bts-dist/runs/*/{METRICS}")), default=0.0)


def wandb_logs(run: ObjectStore, folder: Path) -> list[OfflineRun]:
    """The run's W&B logs, fetched to ``folder``."""
    for entry in run.list("wandb/"):
        path = folder / entry.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(run.get(entry.key))
    return read_all(folder, wandb_id(run))


def check_history(logs: list[OfflineRun], run: ObjectStore) -> None:
    """Together they hold each step once, in order, with what ``metrics.jsonl`` says of it."""
    steps = read_metrics(run, "step")
    assert [row["step"] for row in steps] == list(range(1, len(steps) + 1))
    given = [row for log in logs for row in log.history]
    assert [row["_step"] for row in given] == [row["step"] for row in steps]
    assert [row["step/loss"] for row in given] == pytest.approx([row["loss"] for row in steps])
    epochs = [row["val/dice/patient"] for row in given if "val/dice/patient" in row]
    assert epochs == pytest.approx([row["val/dice/patient"] for row in read_metrics(run, "epoch")])
