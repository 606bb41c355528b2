"""The config: how layers meet, and what each kind of mistake is told."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bts_dist.compose import config_hash, dump_yaml, load_config, with_overrides
from bts_dist.config import Config, CosineSchedule, StepSchedule
from shards.config import StoreConfig
from shards.errors import InputError


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "optim.learning=1",
            "optim.learning: unknown key; valid here: beta1, beta2, ema, grad_clip, kind, lr,",
        ),
        ("optim.lrr=1", "optim.lrr: unknown key; did you mean optim.lr?"),
        ("optimm.lr=1", "optimm: unknown key; did you mean optim?"),
        ("schedule.final_=0.1", "schedule.final_: unknown key; did you mean schedule.final?"),
        (
            "schedule.every_epochs=5",
            "schedule.every_epochs: unknown key; did you mean schedule.warmup_epochs?",
        ),
        ("train.epochs=ten", "train.epochs: 'ten' should be a valid integer"),
        ("train.epochs=2.5", "train.epochs: 2.5 should be a valid integer"),
        ("train.epochs=true", "train.epochs: True should be a valid integer"),
        ('train.epochs="5"', "train.epochs: '5' should be a valid integer"),
        ('optim.lr="3e-4"', "optim.lr: '3e-4' should be a valid number"),
        ("optim.lr=-1", "optim.lr: -1 should be greater than 0"),
        ("optim.lr=.nan", "optim.lr: nan should be greater than 0"),
        ("optim=5", "optim: 5 should be an object"),
        ("run.name=7", "run.name: 7 should be a valid string"),
        ("optim.kind=sgd", "optim.kind: 'sgd' should be 'adam' or 'adamw'"),
        ("schedule.kind=cosinus", "schedule.kind: 'cosinus' is not one of 'constant', 'step', 'cosine'"),
        ("split={seed: 1, kind: null}", "split.kind"),
        ("schedule=5", "schedule: 5 should be"),
        ("data.image_size=100", "data.image_size is 100; with model.depth 5 it must be a multiple of 16"),
        (
            "cluster.workers=17",
            "train.global_batch is 16 for 17 workers; give each worker at least one sample",
        ),
        ("split.train=0.9", "split.train + split.val + split.test is 1.1; they must add up to 1"),
        ("optim.lr", "--set optim.lr: expected section.field=value"),
        ("=3", "--set =3: expected section.field=value"),
        ("optim.lr=[1", "--set: '[1' is not a YAML value"),
    ],
)
def test_a_wrong_setting_is_named(setting: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(sets=[setting])
    assert message in str(caught.value)


def test_a_section_without_its_kind_is_asked_for_it(tmp_path: Path) -> None:
    # A layer that is not laid over a section but takes its place.
    path = write(tmp_path, "a.yaml", "schedule: null")
    with pytest.raises(InputError, match="schedule"):
        load_config([path])
    with pytest.raises(InputError, match=r"schedule\.kind is missing"):
        load_config([path], ["schedule.final=0.5"])


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(InputError) as caught:
        load_config(sets=["optim.lrr=1", "train.epochs=0"])
    assert len(str(caught.value).splitlines()) == 2


def test_a_missing_file_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    near = write(tmp_path, "lgg-cpu.yaml", "")
    with pytest.raises(InputError) as caught:
        load_config([tmp_path / "lgg_cpu.yaml"])
    assert str(caught.value) == f"--config {tmp_path / 'lgg_cpu.yaml'}: no such file; did you mean {near}?"
    with pytest.raises(InputError, match=r"nothing\.yml: no such file$"):
        load_config([tmp_path / "nothing.yml"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"optim: [1", "is not valid YAML"),
        (b"optim: \xff\xfe", "is not valid YAML"),
        (b"- optim", "expected sections such as `optim:` at the top, found list"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.yaml.*" + message.replace("`", ".")):
        load_config([path])


def test_later_layers_win_field_by_field(tmp_path: Path) -> None:
    first = write(tmp_path, "a.yaml", "optim: {lr: 0.1, beta1: 0.8}\ntrain: {epochs: 3}")
    second = write(tmp_path, "b.yaml", "optim: {lr: 0.2, beta2: 0.9}")
    config = load_config([first, second], ["optim.lr=0.3", "train.seed=1", "optim.lr=0.4"])
    assert (config.optim.lr, config.optim.beta1, config.optim.beta2) == (0.4, 0.8, 0.9)
    assert (config.train.epochs, config.train.seed) == (3, 1)
    assert load_config([second, first]).optim.lr == 0.1
    assert load_config(sets=["train.seed=2"], base=config).optim.beta1 == 0.8
    assert load_config([write(tmp_path, "empty.yaml", "# nothing")]) == Config()


def test_another_kind_replaces_the_section_and_the_same_kind_does_not(tmp_path: Path) -> None:
    cosine = write(tmp_path, "a.yaml", "schedule: {kind: cosine, final: 0.5}")
    same = load_config([cosine], ["schedule.kind=cosine", "schedule.warmup_epochs=2"]).schedule
    assert same == CosineSchedule(warmup_epochs=2, final=0.5)
    assert load_config([cosine], ["schedule.kind=step"]).schedule == StepSchedule()


def test_a_search_space_takes_the_place_of_the_default_one(tmp_path: Path) -> None:
    path = write(tmp_path, "tune.yaml", "tune: {space: {optim.beta1: {uniform: [0.8, 0.9]}}}")
    assert load_config([path]).tune.space == {"optim.beta1": {"uniform": [0.8, 0.9]}}


@pytest.mark.parametrize("text", ["3e-4", "3E-4", "3.0e-4", "0.0003", "+.3e-3"])
def test_a_number_may_be_written_with_an_exponent(tmp_path: Path, text: str) -> None:
    assert load_config(sets=[f"optim.lr={text}"]).optim.lr == pytest.approx(3e-4)
    assert load_config([write(tmp_path, "a.yaml", f"optim: {{lr: {text}}}")]).optim.lr == pytest.approx(3e-4)


def test_what_looks_like_a_date_is_a_name() -> None:
    assert load_config(sets=["run.name=2026-01-31"]).run.name == "2026-01-31"
    assert load_config(sets=["run.name=1e-4-trial"]).run.name == "1e-4-trial"


def test_a_config_is_read_where_a_search_left_it(bucket: str, s3: Any, tmp_path: Path) -> None:
    text, local = "optim: {lr: 0.1}", write(tmp_path, "a b.yaml", "train: {epochs: 3}")
    s3.client.put_object(Bucket=bucket.removeprefix("s3://"), Key="run/tune/best.yaml", Body=text.encode())
    config = load_config([f"{bucket}/run/tune/best.yaml", local.as_uri()])
    assert (config.optim.lr, config.train.epochs) == (0.1, 3)
    with pytest.raises(
        InputError, match=rf"^--config {bucket}/run/best.yaml: no such object; check its name"
    ):
        load_config([f"{bucket}/run/best.yaml"])
    with pytest.raises(InputError, match=rf"^--config {tmp_path}/c.yaml: no such file; did you mean"):
        load_config([f"file://{tmp_path}/c.yaml"])


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("s3://bucket", "^--config s3://bucket: names no file; write s3://bucket/folder/name.yaml"),
        ("s3://bucket/run/", "names no file"),
        ("s3:/bucket/best.yaml", "a slash is missing after s3:/"),
        ("ftp://host/best.yaml", "unknown scheme ftp://; use a path, file:// or s3://"),
        ("s3://bucket/best.yaml", "cannot reach http://127.0.0.1:9; is it running"),
    ],
)
def test_a_config_on_a_store_that_cannot_be_read(
    place: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    monkeypatch.setattr("bts_dist.compose._IMPATIENT", StoreConfig(attempts=1))
    with pytest.raises(InputError, match=message):
        load_config([place])


def test_a_dumped_config_is_read_back_whole(tmp_path: Path) -> None:
    config = load_config(sets=["schedule.kind=plateau", "optim.lr=1e-7", "split.kind=none", "run.name=null"])
    assert load_config([write(tmp_path, "dump.yaml", dump_yaml(config))]) == config


def test_overrides_are_checked_and_leave_the_original_alone() -> None:
    config = Config()
    assert with_overrides(config, {"optim.lr": 0.5}).optim.lr == 0.5
    assert config == Config()
    with pytest.raises(InputError, match=r"optim\.lr: 0 should be greater than 0"):
        with_overrides(config, {"optim.lr": 0})
    with pytest.raises(InputError, match="must be a multiple of 64"):
        with_overrides(with_overrides(config, {"data.image_size": 96}), {"model.depth": 7})


def test_the_hash_is_of_the_values_alone() -> None:
    # Runs are found again by it, so it may not change with a release.
    assert config_hash({"b": 1, "a": [0.5, None]}) == "a0e9efb4"
    assert config_hash({"a": [0.5, None], "b": 1}) == "a0e9efb4"
    assert config_hash(Config()) == config_hash(load_config())
    assert config_hash(Config(), length=16).startswith(config_hash(Config()))


@given(st.sampled_from(["train.seed", "train.epochs", "score.seed", "model.features"]), st.integers(2, 10**6))
def test_any_other_value_gives_another_hash(key: str, value: int) -> None:
    config = with_overrides(Config(), {key: value})
    assert (config_hash(config) == config_hash(Config())) == (config == Config())
