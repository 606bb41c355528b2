"""Bad input on the command line: one clear message, exit code 2, no traceback, nothing half-written."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cluster.cli import guarded
from shards.manifest import MANIFEST


@pytest.fixture
def source(phantom: Path, tmp_path: Path) -> Path:
    """A copy of the phantom that a test may damage."""
    return shutil.copytree(phantom, tmp_path / "raw")


def fails(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    """Run a command that must fail with ``code``; all that it printed, on one line."""
    found = guarded(arguments)
    printed = capsys.readouterr()
    assert found == code, printed.out + printed.err
    assert "Traceback" not in printed.out + printed.err
    assert printed.err.startswith("error ")
    return " ".join((printed.out + printed.err).split())


def pack(source: Path, dest: Path, *sets: str) -> list[str]:
    options = [
        f"data.source={source}",
        f"data.shards={dest}",
        "cluster.runtime=local",
        "pack.workers=1",
        *sets,
    ]
    return ["pack", *(word for option in options for word in ("--set", option))]


def first(source: Path, pattern: str) -> Path:
    return sorted(source.rglob(pattern))[0]


def test_a_missing_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = fails(capsys, *pack(tmp_path / "nowhere", tmp_path / "out"))
    assert str(tmp_path / "nowhere") in text
    assert not (tmp_path / "out").exists()


def test_a_folder_without_pairs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in fails(capsys, *pack(tmp_path / "empty", tmp_path / "out"))


def test_all_problems_of_a_source_show_at_once(
    capsys: pytest.CaptureFixture[str], source: Path, tmp_path: Path
) -> None:
    images = sorted(p for p in source.rglob("*_1.tif"))
    images[0].write_bytes(images[0].read_bytes()[:1000])
    mask = images[1].with_name(images[1].name.replace("_1.tif", "_1_mask.tif"))
    Image.new("L", (16, 16)).save(mask)
    images[2].unlink()
    text = fails(capsys, *pack(source, tmp_path / "out"))
    for name in (images[0].name, mask.name, images[2].name.replace("_1.tif", "_1_mask.tif")):
        assert name in text
    assert not (tmp_path / "out" / MANIFEST).exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optim.lrr=1", "did you mean optim.lr?"),
        ("train.epochs=many", "train.epochs: 'many' should be a valid integer"),
        ("schedule.kind=spiral", "'spiral' is not one of"),
        ("data.source", "expected section.field=value"),
    ],
)
def test_a_wrong_setting_names_the_key(
    capsys: pytest.CaptureFixture[str], setting: str, message: str
) -> None:
    assert message in fails(capsys, "train", "--set", setting)


def test_a_missing_config_file_names_its_neighbour(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "demo.yaml").write_text("train: {epochs: 1}")
    text = fails(capsys, "run", "--config", str(tmp_path / "dmo.yaml"))
    assert "no such file" in text
    assert "demo.yaml" in text


def test_a_prefix_with_another_data_set_is_left_alone(
    capsys: pytest.CaptureFixture[str], source: Path, packed: Path, tmp_path: Path
) -> None:
    dest = shutil.copytree(packed, tmp_path / "out")
    before = (dest / MANIFEST).read_bytes()
    text = fails(capsys, *pack(source, dest, "split.seed=5"))
    assert "already holds another data set" in text
    assert (dest / MANIFEST).read_bytes() == before


def test_a_store_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], source: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert str(tmp_path / "file") in fails(capsys, *pack(source, tmp_path / "file" / "out"))


def test_training_without_shards_says_what_to_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = fails(capsys, "train", "--set", f"data.shards={tmp_path}", "--set", f"run.dir={tmp_path / 'runs'}")
    assert "bts pack" in text
    assert not (tmp_path / "runs").exists()


def test_fewer_samples_than_workers(capsys: pytest.CaptureFixture[str], packed: Path, tmp_path: Path) -> None:
    options = [f"data.shards={packed}", f"run.dir={tmp_path}", "cluster.workers=64", "train.global_batch=64"]
    text = fails(capsys, "train", *(word for option in options for word in ("--set", option)))
    assert "lower cluster.workers" in text


def test_flipped_bytes_are_found_by_verify_packed(
    capsys: pytest.CaptureFixture[str], packed: Path, tmp_path: Path
) -> None:
    dest = shutil.copytree(packed, tmp_path / "copy")
    assert guarded(["verify", "--packed", str(dest)]) == 0
    shard = first(dest, "train-*.tar")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    capsys.readouterr()
    assert shard.name in fails(capsys, "verify", "--packed", str(dest))


def test_scoring_needs_a_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "--model" in fails(capsys, "score")
    assert "holds no whole checkpoint" in fails(capsys, "score", "--model", str(tmp_path))


def test_an_unknown_command_or_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert "bts --help" in fails(capsys, "trian")
    assert "bts --help" in fails(capsys, "train", "--lr", "3")


def test_inspect_draws_training_slices_only(
    capsys: pytest.CaptureFixture[str], packed: Path, tmp_path: Path
) -> None:
    sheet = tmp_path / "sheet.png"
    assert guarded(["inspect", "--set", f"data.shards={packed}", "--out", str(sheet)]) == 0
    assert Image.open(sheet).width > 100
    printed = capsys.readouterr().out
    manifest = json.loads((packed / MANIFEST).read_text())
    assert manifest["data_id"] in printed


def test_a_config_on_a_store_reaches_a_command_and_a_job(
    bucket: str, s3: Any, source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    text = f"data: {{source: {source}}}\ncluster: {{runtime: local}}"
    s3.client.put_object(Bucket=bucket.removeprefix("s3://"), Key="run/tune/best.yaml", Body=text.encode())
    best = f"{bucket}/run/tune/best.yaml"
    for command in (["verify"], ["submit", "verify"]):
        assert guarded([*command, "--config", best]) == 0
        # The next command names it as it was given, both slashes and all.
        assert f"bts pack --config {best}" in capsys.readouterr().out
    assert f"--config {best}s: no such object" in fails(capsys, "train", "--config", f"{best}s")
