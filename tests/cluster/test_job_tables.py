"""Jobs and nodes as people read them, out of what a dashboard says."""

import time
from typing import Any

import pytest
from ray.job_submission import JobDetails

from cluster.cluster_status import JOB_HEADINGS, NODE_HEADINGS, job_rows, node_rows, used_by_node, waiting
from cluster.job_end import conclude, last_error
from cluster.jobs import HEADINGS, duration, find_job, list_jobs, progress, table
from shards.errors import InputError

START_MS = 1_700_000_000_000


def job(job_id: str, status: str = "RUNNING", **more: Any) -> JobDetails:
    fields = {
        "type": "SUBMISSION",
        "submission_id": job_id,
        "status": status,
        "entrypoint": "python -m cluster.cli train --config config.yaml",
        "start_time": START_MS,
        "metadata": {"stage": "train", "run": "runs/demo"},
    }
    return JobDetails(**{**fields, **more})


class Board:
    """A dashboard that knows some jobs."""

    url = "http://head:8265"

    def __init__(self, *jobs: JobDetails, log: str = "") -> None:
        self._jobs, self._log = jobs, log

    def list_jobs(self) -> list[JobDetails]:
        return list(self._jobs)

    def log_end(self, job: JobDetails, lines: int) -> str:
        return self._log


def test_jobs_are_listed_newest_first_and_drivers_left_out() -> None:
    old, new = job("pack-1"), job("train-2", start_time=START_MS + 1)
    board: Any = Board(old, job("", type="DRIVER"), new)
    assert list_jobs(board) == [new, old]


def test_a_row_of_the_table() -> None:
    done = job("train-2", "FAILED", end_time=START_MS + 125_000, driver_exit_code=2)
    heads, row, foreign = table([done, job("x", metadata=None)], START_MS + 4_000)
    assert heads == HEADINGS
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(START_MS / 1000))
    assert row == ("train-2", "train", "runs/demo", "failed", started, "2 min 05 s", "2")
    assert foreign == ("x", "python -m cluster.cli train --config con", "", "running", started, "4 s", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (3599, "59 min 59 s"), (11220, "3 h 07 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_an_unknown_job_names_the_nearest() -> None:
    board: Any = Board(job("train-4ef10693"), job("pack-4baa7ae3"))
    assert find_job(board, "pack-4baa7ae3").submission_id == "pack-4baa7ae3"
    with pytest.raises(InputError, match=r"no job trian-4ef1; did you mean train-4ef10693\?"):
        find_job(board, "trian-4ef1")
    with pytest.raises(InputError, match="no job 9; `bts jobs --address http://head:8265` lists"):
        find_job(board, "9")


@pytest.mark.parametrize(
    ("log", "text"),
    [
        ("", "starts, or waits for room"),
        (
            "INFO job_manager.py:581 -- Runtime env is setting up.\nRunning entrypoint for job x: y",
            "starts, or waits",
        ),
        (
            "train: 150/1000 epoch 1.50  loss 0.7  3.2 slices/s\n  note\n",
            "15%  epoch 1.50  loss 0.7  3.2 slices/s",
        ),
        ("train: 150/1000 epoch 1.5\n  epoch 2/10  loss 0.6\n    data 1%\n", "epoch 2/10  loss 0.6"),
        ("verify: 10/40\n", "25%  10/40"),
        ("pack  shards (train 6)\n", "pack  shards (train 6)"),
        ("fold 2  pack: 26/52 slices, 5.2 slices/s\n", "fold 2  50%  slices, 5.2 slices/s"),
        ("fold 0    epoch 3/6  loss 0.5\nfold 0    data 1%\n", "fold 0  epoch 3/6  loss 0.5"),
    ],
)
def test_progress_is_the_newest_line_that_counts(log: str, text: str) -> None:
    assert progress(log).startswith(text)


def node(name: str, state: str = "ALIVE", **more: Any) -> dict[str, Any]:
    raylet = {"nodeId": name, "nodeManagerAddress": f"10.0.0.{name}", "state": state, **more}
    return {"raylet": raylet, "mem": [16 * 2**30, 12 * 2**30, 25.0, 4 * 2**30]}


LOAD = {
    "clusterStatus": {
        "autoscalerReport": {"pendingNodes": [["10.0.0.9", "gpu", "setting-up"]]},
        "loadMetricsReport": {
            "usageByNode": {"2": {"CPU": [1.5, 4.0], "GPU": [1.0, 2.0]}},
            "resourceDemand": [[{"CPU": 1.0}, 3]],
            "pgDemand": [[{"bundles": [[{"CPU": 1.0, "GPU": 1.0}, 2]], "strategy": "PACK"}, 1]],
            "requestDemand": [[{"CPU": 1.0}, 2]],
        },
    }
}


def test_nodes_with_what_is_used_of_each() -> None:
    gpus = {
        "resourcesTotal": {"CPU": 4.0, "GPU": 2.0},
        "labels": {"ray.io/node-id": "2", "market-type": "spot"},
    }
    lost = node("1", "DEAD", stateMessage="health check failed")
    rows = node_rows(
        [lost, node("2", **gpus), node("3", isHeadNode=True, resourcesTotal={})], used_by_node(LOAD)
    )
    assert rows[0] == NODE_HEADINGS
    assert rows[1] == ("10.0.0.3 (head)", "alive", "0", "0", "4.0/16.0 GiB", "")
    assert rows[2] == ("10.0.0.2", "alive", "1.5/4", "1/2", "4.0/16.0 GiB", "market-type=spot")
    assert rows[3] == ("10.0.0.1", "dead: health check failed", "", "", "", "")


def test_a_cluster_that_has_not_told_yet() -> None:
    assert used_by_node({"clusterStatus": None}) == {}
    assert waiting({"clusterStatus": None}) == []
    assert node_rows([node("2", resourcesTotal={"CPU": 4.0})], {})[1][2:4] == ("–/4", "0")


def test_what_waits_for_room_is_what_has_none_yet() -> None:
    assert waiting(LOAD) == [
        "3 × {CPU: 1}",
        "1 × a group of 2 × {CPU: 1, GPU: 1} (pack)",
        "a node that starts: 10.0.0.9 gpu setting-up",
    ]


def test_running_jobs_with_their_progress() -> None:
    board: Any = Board(log="train: 150/1000 epoch 1.50")
    jobs = [job("a"), job("b", "SUCCEEDED"), job("c", "PENDING")]
    assert job_rows(board, jobs, START_MS + 60_000) == [
        JOB_HEADINGS,
        ("a", "train", "runs/demo", "1 min 00 s", "15%  epoch 1.50"),
        ("c", "train", "runs/demo", "1 min 00 s", "pending: its environment is being set up"),
    ]


def test_the_error_of_a_log_is_its_last() -> None:
    assert last_error("a\nerror data.source: nothing there\n  `bts --debug …` shows\n") == (
        "error data.source: nothing there"
    )
    assert last_error("Traceback\nValueError: one\nModuleNotFoundError: No module named 'torch'\n") == (
        "ModuleNotFoundError: No module named 'torch'"
    )
    assert last_error("only words\n") == "only words"
    assert last_error("") == "it left no log"


@pytest.mark.parametrize(
    ("status", "exit_code", "code", "said"),
    [
        ("SUCCEEDED", 0, 0, "job train-2 is done"),
        ("FAILED", 2, 2, "failed with exit code 2: x: nothing there"),
        ("FAILED", 1, 1, "failed with exit code 1"),
        ("FAILED", -9, 1, "failed with exit code -9"),
        ("FAILED", None, 1, "the job train-2 failed: "),
        ("STOPPED", None, 1, "was stopped; the same command goes on"),
    ],
)
def test_a_job_ends_with_the_exit_code_of_its_command(
    status: str, exit_code: int | None, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = job("train-2", status, driver_exit_code=exit_code, message="…logs:\nerror x: nothing there\n")
    assert conclude(ended) == code
    printed = capsys.readouterr()
    assert said in " ".join((printed.out + printed.err).split())


def test_what_is_missing_on_the_cluster_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    ended = job(
        "train-2", "FAILED", driver_exit_code=1, message="ModuleNotFoundError: No module named 'torch'"
    )
    assert conclude(ended) == 1
    assert "install what bts-dist needs, torch among it" in capsys.readouterr().err
