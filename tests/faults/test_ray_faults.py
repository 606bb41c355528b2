"""Real faults on a real Ray cluster of several nodes: each ends in a record that an undisturbed run could have left."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupts import heed_interrupts
from ray_nodes import RAY, Node, Nodes, free_port

from bts_dist import checkpoint
from bts_dist.compose import load_config
from bts_dist.runtime import LocalRuntime
from bts_dist.track import read_metrics
from bts_dist.train import train
from shards.store import LocalStore

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

EPOCHS = 400
"""More than any of these runs gets to: they are ended when they have shown what they are asked for."""
PLENTY = 60
"""Epochs of the run that nobody disturbs; the others are compared as far as they come."""


@dataclass
class Job:
    """A ``bts train`` on the cluster, from outside of it."""

    process: "subprocess.Popen[str]"
    output: Path
    run: LocalStore

    def rows(self, kind: str) -> list[dict[str, Any]]:
        return read_metrics(self.run, kind)

    def step(self) -> int:
        return max((row["step"] for row in self.rows("step")), default=0)

    def notes(self) -> str:
        return "\n".join(row["text"] for row in self.rows("note"))

    def wait(self, what: str, until: Callable[[], bool], seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not until():
            assert self.process.poll() is None, f"ended before {what}:\n{self.output.read_text()}"
            assert time.monotonic() < end, f"still no {what}:\n{self.output.read_text()}\n{self.notes()}"
            time.sleep(0.1)

    def wait_for_checkpoint(self) -> None:
        self.wait(
            "checkpoint", lambda: any(e.key.endswith(checkpoint.FILES) for e in self.run.list("checkpoints/"))
        )

    def wait_for_recoveries(self, number: int) -> dict[str, Any]:
        self.wait(f"recovery {number}", lambda: len(self.rows("recovery")) >= number)
        at = self.step()
        self.wait("steps after it", lambda: self.step() > at + 8)
        recovery = self.rows("recovery")[-1]
        print(f"\n{self.notes().splitlines()[-1]}")  # the figures of docs/operations.md
        return recovery

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("ray") / "r"
    folder.mkdir()
    nodes = Nodes(free_port(), folder)
    try:
        nodes.start_head()
        nodes.add()
        nodes.add()
        yield nodes
    finally:
        nodes.stop()


@pytest.fixture(scope="module")
def sets(packed: Path) -> list[str]:
    return [
        f"data.shards={packed}",
        "model.features=4",
        "model.depth=3",
        "model.norm=group",
        "optim.lr=5e-3",
        "optim.ema=0.9",
        "schedule={kind: constant}",
        f"train.epochs={EPOCHS}",
        "train.global_batch=4",
        "train.precision=fp32",
        "train.deterministic=true",
        "train.checkpoint_steps=5",
        "train.log_every=1",
        "train.threads=1",
        "track.wandb=disabled",
        "cluster.resize_s=5",
    ]


@pytest.fixture(scope="module")
def undisturbed(sets: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The step rows of a run that nothing happens to."""
    root = tmp_path_factory.mktemp("undisturbed")
    config = load_config([], [*sets, f"train.epochs={PLENTY}", "cluster.workers=1"])
    run = LocalStore(str(root), root)
    train(config, LocalRuntime(0, 1, 0, torch.device("cpu")), run, root)
    return read_metrics(run, "step")


@pytest.fixture
def start(nodes: Nodes, sets: list[str], tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Starts the command, in a run of the test's own."""
    jobs: list[Job] = []

    def start(*more: str) -> Job:
        places = [f"cluster.address={nodes.address}", f"run.dir={tmp_path}", "run.name=run"]
        options = [option for value in [*sets, *places, *more] for option in ("--set", value)]
        output = tmp_path / f"output-{len(jobs)}.txt"
        process = subprocess.Popen(
            [sys.executable, "-m", "cluster.cli", "train", *options],
            env=nodes.environment,
            stdout=output.open("w"),
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=heed_interrupts,
        )
        jobs.append(Job(process, output, LocalStore(str(tmp_path / "run"), tmp_path / "run")))
        return jobs[-1]

    yield start
    for job in jobs:
        if job.process.poll() is None:
            job.process.kill()
            job.process.wait()


def check_record(job: Job, undisturbed: list[dict[str, Any]]) -> None:
    """Each step once, in order, with the very loss that it has without any fault, on any number of workers."""
    rows = job.rows("step")
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    shared = min(len(rows), len(undisturbed))
    assert [row["loss"] for row in rows[:shared]] == [row["loss"] for row in undisturbed[:shared]]
    epochs = job.rows("epoch")
    assert [row["epoch"] for row in epochs] == list(range(1, len(epochs) + 1))


def a_worker(nodes: Nodes) -> tuple[Node, int]:
    """A node with a Train worker, the youngest such node first, and the worker's process."""
    for node in reversed(nodes.nodes):
        workers = node.workers()
        if workers and node.process.poll() is None:
            return node, workers[0]
    raise AssertionError("no train worker is running")


def test_frozen_and_killed_workers_are_named_and_replaced_until_the_budget_is_spent(
    nodes: Nodes, start: Callable[..., Job], undisturbed: list[dict[str, Any]]
) -> None:
    job = start("cluster.frozen_s=10", "cluster.max_failures=2")
    job.wait_for_checkpoint()
    _, worker = a_worker(nodes)
    os.kill(worker, signal.SIGSTOP)
    recovery = job.wait_for_recoveries(1)
    assert re.search(rf"rank [01] \(process {worker} on .*\) gave no sign of life for 10 s", job.notes())
    assert 10 <= recovery["down_s"] < 60
    assert not Path(f"/proc/{worker}").exists(), "the frozen process was left behind"
    os.kill(a_worker(nodes)[1], signal.SIGKILL)
    assert job.wait_for_recoveries(2)["down_s"] < 60
    _, worker = a_worker(nodes)
    os.kill(worker, signal.SIGKILL)
    assert job.process.wait(120) == 1
    text = job.output.read_text()
    assert re.search(rf"training failed: rank [01] \(process {worker} on .*\) was lost", text)
    assert "cluster.max_failures=2" in text
    assert "the same command goes on from there" in text
    check_record(job, undisturbed)


def test_a_lost_node_shrinks_the_run_and_a_new_one_grows_it(
    nodes: Nodes, start: Callable[..., Job], undisturbed: list[dict[str, Any]]
) -> None:
    job = start("cluster.workers=[1, 2]")
    job.wait("two workers", lambda: "2 worker(s)" in job.notes())
    job.wait_for_checkpoint()
    node, worker = a_worker(nodes)
    node.kill()
    job.wait_for_recoveries(1)
    assert "1 worker(s)" in job.notes()
    assert re.search(rf"rank [01] \(process {worker} on .*\) was lost", job.notes())
    nodes.add()
    at = len(job.rows("recovery"))
    job.wait_for_recoveries(at + 1)
    assert re.search(r"the cluster has room for 2 workers", job.notes())
    assert "2 worker(s)" in job.notes().rpartition("1 worker(s)")[2]
    assert job.interrupt() == 130
    check_record(job, undisturbed)


def test_a_notice_saves_in_time_and_is_no_failure(
    nodes: Nodes, start: Callable[..., Job], undisturbed: list[dict[str, Any]]
) -> None:
    # Within an epoch nothing but the notice has anything saved.
    alone = ["train.checkpoint_steps=null", "train.checkpoint_minutes=null", "train.keep_checkpoints=1000"]
    job = start("cluster.workers=[1, 2]", "cluster.max_failures=0", *alone)
    job.wait("two workers", lambda: "2 worker(s)" in job.notes())
    job.wait("steps", lambda: job.step() > 8)
    node, _ = a_worker(nodes)
    drain(nodes, node, seconds=20)
    job.wait_for_recoveries(1)
    assert "a worker's node was taken away with notice" in job.notes()
    saves = [row["step"] for row in job.rows("note") if "saving" in row["text"]]
    assert len(saves) == 2, f"at once, and just in time:\n{job.notes()}"
    assert set(saves) <= {checkpoint.step_of(name) for name in checkpoint.names(job.run)}
    assert job.interrupt() == 130
    check_record(job, undisturbed)
    node.kill()


def test_a_killed_command_goes_on_when_given_again(
    nodes: Nodes, start: Callable[..., Job], undisturbed: list[dict[str, Any]]
) -> None:
    first = start("cluster.workers=1")
    first.wait_for_checkpoint()
    first.process.kill()
    first.process.wait()
    again = start("cluster.workers=1")
    again.wait_for_recoveries(1)
    assert re.search(r"attempt 1 was interrupted: its command was killed", again.notes())
    assert f"process {first.process.pid} on" in again.output.read_text()
    assert again.interrupt() == 130
    check_record(again, undisturbed)


def drain(nodes: Nodes, node: Node, seconds: int) -> None:
    """Give notice that a node will be taken away."""
    subprocess.run(
        [
            RAY,
            "drain-node",
            f"--address={nodes.address}",
            f"--node-id={node.ray_id}",
            "--reason=DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message=taken back",
            f"--deadline-remaining-seconds={seconds}",
        ],
        env=nodes.environment,
        check=True,
        capture_output=True,
    )
