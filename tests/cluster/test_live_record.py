"""What people see of a run is all of its record, each row once, whatever happens to the file, wherever rank 0 is."""

import json
from pathlib import Path

import pytest

from bts_dist.compose import load_config
from bts_dist.config import Config
from bts_dist.run import open_run, workspace
from bts_dist.track import METRICS
from cluster import live_record
from cluster.live_record import Growing, LiveRecord


def lines(*times: float) -> str:
    return "".join(
        json.dumps({"kind": "note", "step": 0, "time": t, "text": f"at {t}"}) + "\n" for t in times
    )


def replace(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


def seen(record: Growing) -> list[float]:
    return [row["time"] for row in record.new_rows()]


def test_only_what_is_new_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(1, 2))
    record = Growing(path)
    assert seen(record) == []
    with path.open("a") as file:
        file.write(lines(3, 3, 4) + '{"kind": "no')
        file.flush()
        assert seen(record) == [3, 3, 4]
        file.write('te", "step": 0, "time": 5}\n')
    assert seen(record) == [5]


def test_a_resumed_run_replaces_its_record(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    record = Growing(path)
    assert seen(record) == []
    path.write_text(lines(1, 2, 3, 4))
    assert seen(record) == [1, 2, 3, 4]
    # It keeps two rows, and has grown beyond the old one's length before the next look.
    replace(path, lines(1, 2, 5, 6, 7))
    assert seen(record) == [5, 6, 7]
    replace(path, lines(1))
    assert seen(record) == []


@pytest.fixture
def config(bucket: str, tmp_path: Path) -> Config:
    places = [f"run.dir={bucket}", "run.name=run", f"store.cache_dir={tmp_path}"]
    return load_config([], places)


def write_workspace(config: Config, text: str) -> None:
    folder = workspace(open_run(config), config)
    folder.mkdir(parents=True, exist_ok=True)
    replace(folder / METRICS, text)


def test_rows_of_a_rank_on_another_machine_come_from_the_store(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(config)
    run.put(METRICS, lines(1, 2).encode())
    record = LiveRecord(config)
    assert record.new_rows(last=True) == []
    run.put(METRICS, lines(1, 2, 3).encode())
    assert record.new_rows() == [], "it asks the store now and then"
    monkeypatch.setattr(live_record, "STORE_EVERY_S", 0.0)
    assert [row["time"] for row in record.new_rows()] == [3]
    # It resumes after the second row.
    run.put(METRICS, lines(1, 2, 4, 5).encode())
    assert [row["time"] for row in record.new_rows()] == [4, 5]
    assert record.new_rows(last=True) == []


def test_rows_of_a_rank_on_this_machine_are_shown_once(config: Config) -> None:
    record = LiveRecord(config)
    write_workspace(config, lines(1, 2))
    assert [row["time"] for row in record.new_rows()] == [1, 2]
    open_run(config).put(METRICS, lines(1, 2).encode())
    assert record.new_rows(last=True) == []
    # Then rank 0 moves to another machine.
    open_run(config).put(METRICS, lines(1, 2, 3).encode())
    assert [row["time"] for row in record.new_rows(last=True)] == [3]
