"""SIGTERM ends a command as Ctrl-C does."""

import signal
import subprocess
import sys

import pytest
from interrupts import heed_interrupts

COMMAND = """
import sys, time, signal
import cluster.cli as cli

@cli.app.command()
def idle() -> None:
    {prepare}
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("given back", flush=True)

cli.main(["idle"])
"""
# What Ray does when a cluster is joined.
RAY_TAKES_IT = """
    from cluster.termination import termination_heeded
    with termination_heeded():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
"""
# What Ray does while it trains.
RAY_TAKES_CTRL_C = "signal.signal(signal.SIGINT, lambda number, frame: (print('workers ended'), sys.exit(0)))"


def end(prepare: str, *signals: signal.Signals) -> tuple[int, str, str]:
    """Start a command, send it signals, and its exit code and what it printed."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(prepare=prepare)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for number in signals:
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize("prepare", ["pass", RAY_TAKES_IT], ids=["plain", "joined"])
def test_a_command_gives_back_what_it_holds(prepare: str) -> None:
    code, out, err = end(prepare, signal.SIGTERM)
    assert (code, out) == (143, "given back\n")
    assert err.split() == ["interrupted;", "give", "the", "same", "command", "again", "to", "go", "on"]


def test_ctrl_c_keeps_its_own_exit_code() -> None:
    assert end("pass", signal.SIGINT)[:2] == (130, "given back\n")


def test_it_does_what_ctrl_c_does_at_that_time() -> None:
    assert end(RAY_TAKES_CTRL_C, signal.SIGTERM)[1] == "workers ended\ngiven back\n"


WANDB_RECORDS = """
    import glob, os, tempfile, wandb
    os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", WANDB_DIR=tempfile.mkdtemp())
    wandb.init(project="p").finish()
    children = [open(path).read() for path in glob.glob("/proc/self/task/*/children")]
    for child in " ".join(children).split(): os.kill(int(child), signal.SIGKILL)
"""


def test_wandbs_process_may_have_been_ended_before() -> None:
    code, out, err = end(WANDB_RECORDS, signal.SIGTERM)
    assert (code, out) == (143, "given back\n")
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1


STARTED = """
import os, subprocess, sys, time
from cluster.termination import PARENT
child = subprocess.Popen(
    [sys.executable, "-c", sys.argv[1]], env={**os.environ, PARENT: str(os.getpid())}, start_new_session=True
)
time.sleep(60)
"""


def test_what_a_command_has_started_ends_in_good_order_when_it_is_killed() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", STARTED, COMMAND.format(prepare="pass")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=heed_interrupts,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    parent.kill()
    # The child has the pipe too: it ends where the child does.
    out, _ = parent.communicate(timeout=30)
    assert out.splitlines() == ["given back", "interrupted; give the same command again to go on"]
