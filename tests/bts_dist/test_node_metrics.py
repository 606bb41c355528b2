"""The load of nodes: read off /proc, looked at in a thread, and put together from what every rank saw."""

import math
import time
from pathlib import Path

import pytest
import torch

from bts_dist.node_metrics import Load, LoadReader, NodeMeter, by_node, summarise
from bts_dist.runtime import LocalRuntime

NAN = math.nan


def write_proc(folder: Path, busy: int, idle: int, available: int) -> None:
    # user nice system idle iowait irq softirq steal guest guest_nice, the last two being part of user and nice.
    folder.mkdir(exist_ok=True)
    (folder / "stat").write_text(f"cpu  {busy} 0 0 {idle} 0 0 0 0 {busy} 0\ncpu0 1 2 3\n")
    (folder / "meminfo").write_text(
        f"MemTotal:       1000 kB\nMemFree:         1 kB\nMemAvailable:    {available} kB\nHugePages_Total:       0\n"
    )


def test_processors_are_judged_since_the_last_look(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    write_proc(proc, busy=1000, idle=9000, available=250)
    read = LoadReader(torch.device("cpu"), proc)
    write_proc(proc, busy=1060, idle=9040, available=250)
    load = read()
    assert (load.cpu, load.memory) == (60, 75)
    assert math.isnan(load.gpu)
    assert math.isnan(load.gpu_memory)
    assert math.isnan(read().cpu), "no time has passed"


def test_this_machine_can_be_read() -> None:
    read = LoadReader(torch.device("cpu"))
    end = time.monotonic() + 0.1
    while time.monotonic() < end:
        pass
    load = read()
    assert 0 < load.cpu <= 100
    assert 0 < load.memory < 100


def test_a_meter_gives_the_mean_since_it_was_last_asked() -> None:
    values = iter([10.0, 20.0, 60.0])
    meter = NodeMeter(lambda: Load(next(values), NAN, NAN, NAN))
    assert meter.take().cpu == 10
    meter._seen.append(Load(20.0, NAN, NAN, NAN))
    assert meter.take().cpu == 20
    assert math.isnan(meter.take().memory)


def test_a_meter_looks_by_itself_until_it_is_left() -> None:
    looks = []

    def read() -> Load:
        looks.append(time.monotonic())
        return Load(1, 2, NAN, NAN)

    with NodeMeter(read, every_s=0.01):
        end = time.monotonic() + 10
        while len(looks) < 3:
            assert time.monotonic() < end
            time.sleep(0.01)
    seen = len(looks)
    time.sleep(0.05)
    assert len(looks) == seen


def test_nodes_are_numbered_by_their_ranks_and_have_their_gpus_in_the_mean() -> None:
    found = summarise(
        [
            [1, 50, 40, 90, 30],
            [0, 99, 99, 70, 10],  # the same node, seen a moment later
            [1, 20, 10, NAN, NAN],
        ]
    )
    assert found == {
        "system/node-0/cpu": 50,
        "system/node-0/memory": 40,
        "system/node-0/gpu": 80,
        "system/node-0/gpu_memory": 20,
        "system/node-1/cpu": 20,
        "system/node-1/memory": 10,
    }


def test_one_process_is_one_node(runtime: LocalRuntime) -> None:
    assert by_node(Load(50, 40, NAN, NAN), runtime) == {
        "system/node-0/cpu": pytest.approx(50),
        "system/node-0/memory": pytest.approx(40),
    }
