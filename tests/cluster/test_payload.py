"""What travels with a job: the code and the config, whole, and nothing of this machine's."""

from pathlib import Path

import pytest

from bts_dist.compose import load_config
from bts_dist.config import Config
from cluster.payload import CONFIG, PACKAGES, make_payload
from shards.errors import InputError

ROOT = Path(__file__).parents[2]
CANARY = "canary-4f1d"
DEPLOYMENT = ("cluster/aws/", "cluster/docker/", "cluster/kuberay/")


def test_the_code_travels_as_it_is_imported_and_the_config_as_it_was_checked(
    config: Config, tmp_path: Path
) -> None:
    payload = make_payload(tmp_path / "job", config)
    sent = {p.relative_to(payload.folder).as_posix() for p in payload.folder.rglob("*") if p.is_file()}
    here = {
        p.relative_to(ROOT).as_posix() for name in PACKAGES for p in (ROOT / name).rglob("*") if p.is_file()
    }
    # Whatever the code reads goes along; what starts clusters does not.
    assert sent == {p for p in here if "__pycache__" not in p and not p.startswith(DEPLOYMENT)} | {CONFIG}
    assert payload.num_files == len(sent)
    assert payload.num_bytes == sum((payload.folder / p).stat().st_size for p in sent)
    assert load_config([payload.folder / CONFIG]) == config
    assert (payload.folder / "cluster" / "cli.py").read_bytes() == (ROOT / "cluster" / "cli.py").read_bytes()


def test_credentials_stay_here(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "WANDB_API_KEY", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, f"{CANARY}-{name}")
    folder = make_payload(tmp_path / "job", config).folder
    assert not [p for p in folder.rglob("*") if p.is_file() and CANARY.encode() in p.read_bytes()]


def test_what_lies_beside_the_code_stays_here(config: Config, tmp_path: Path) -> None:
    package = tmp_path / "bts_dist"
    for name in (
        *(".env", ".env.py", ".secrets/key.py", ".ipynb_checkpoints/train.py", "__pycache__/train.pyc"),
        *("credentials", "id_rsa", "patients.csv", "volume.npy", "token.json", "keys.yaml", "train.py~"),
    ):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(CANARY)
    (package / "train.py").write_text("pass")
    payload = make_payload(tmp_path / "job", config, {"bts_dist": package})
    assert {p.name for p in payload.folder.rglob("*") if p.is_file()} == {"train.py", CONFIG}


def test_what_is_too_large_is_named_and_nothing_is_copied(config: Config, tmp_path: Path) -> None:
    package = tmp_path / "bts_dist"
    package.mkdir()
    (package / "small.py").write_text("pass")
    with (package / "weights.py").open("wb") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(InputError, match=r"may carry 64 MiB; .*weights\.py \(65\.0 MiB\), .*small\.py"):
        make_payload(tmp_path / "job", config, {"bts_dist": package})
    assert not (tmp_path / "job").exists()
