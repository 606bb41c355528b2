"""Checkpoints come back bit for bit, or are passed over; the one that counts is never lost."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch.amp import GradScaler

import bts_dist
from bts_dist import checkpoint
from bts_dist.checkpoint import Progress, TrainState
from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.optim import Ema, make_optimizer
from bts_dist.unet import UNet, make_unet
from shards.errors import InputError
from shards.store import LocalStore

TINY = with_overrides(
    Config(),
    {"model.features": 2, "model.depth": 2, "optim.kind": "adamw", "optim.ema": 0.9, "cluster.workers": 1},
)


def state(config: Config = TINY, steps: int = 0, seed: int = 0) -> TrainState:
    torch.manual_seed(seed)
    model = make_unet(config.model, torch.device("cpu"))
    optimizer = make_optimizer(config.optim, model)
    ema = Ema(model, config.optim.ema) if config.optim.ema is not None else None
    made = TrainState(model, optimizer, ema, Progress())
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 8, 8))[0].square().mean().backward()
        optimizer.step()
        if ema is not None:
            ema.update(model)
    return made


def publish(run: LocalStore, made: TrainState, step: int, best: int | None = None) -> str:
    made.progress.step = step
    made.progress.best = checkpoint.checkpoint_name(step if best is None else best, 1)
    name = checkpoint.checkpoint_name(step, 1)
    checkpoint.publish(checkpoint.snapshot(made, TINY), run, name)
    return name


def same(first: TrainState, second: TrainState) -> bool:
    assert first.ema is not None
    assert second.ema is not None
    pairs = [(first.model.state_dict(), second.model.state_dict()), (first.ema.weights, second.ema.weights)]
    if any(a.keys() != b.keys() or not all(torch.equal(a[k], b[k]) for k in a) for a, b in pairs):
        return False
    one, two = (s.optimizer.state_dict() for s in (first, second))
    moments = all(
        torch.equal(value, two["state"][index][name])
        for index, values in one["state"].items()
        for name, value in values.items()
    )
    return (
        moments
        and one["state"].keys() == two["state"].keys()
        and [g["lr"] for g in one["param_groups"]] == [g["lr"] for g in two["param_groups"]]
        and first.ema.num_updates == second.ema.num_updates
        and first.progress == second.progress
    )


def test_everything_comes_back_bit_for_bit(run: LocalStore, tmp_path: Path) -> None:
    made = state(steps=3)
    made.progress = Progress(2, 3, [0.1, 1 / 3], "step-00000003-a1", 0.4, "data", ["A", "B"], "w1")
    for group in made.optimizer.param_groups:
        group["lr"] = 0.1 + 0.2
    publish(run, made, 3)
    fetched = checkpoint.fetch_newest(run, tmp_path / "there", pytest.fail)
    assert fetched is not None
    restored = state(seed=9)
    assert not same(made, restored)
    checkpoint.load(restored, fetched)
    assert same(made, restored)
    assert checkpoint.read_progress(fetched) == made.progress
    assert checkpoint.read_config(fetched) == TINY


def test_a_restored_optimizer_steps_like_the_original(tmp_path: Path) -> None:
    made = state(steps=2)
    checkpoint.save(made, TINY, tmp_path / "c")
    restored = state(seed=9)
    checkpoint.load(restored, tmp_path / "c")
    for one in (made, restored):
        torch.manual_seed(5)
        one.optimizer.zero_grad()
        one.model(torch.randn(2, 3, 8, 8))[0].square().mean().backward()
        one.optimizer.step()
        assert one.ema is not None
        one.ema.update(one.model)
    assert same(made, restored)


def test_the_loss_scale_comes_back(tmp_path: Path) -> None:
    made, restored, without = (replace(state(), scaler=GradScaler("cpu")) for _ in range(3))
    assert made.scaler is not None
    assert restored.scaler is not None
    assert without.scaler is not None
    made.scaler.load_state_dict({**made.scaler.state_dict(), "scale": 2.0**-3, "_growth_tracker": 1999})
    checkpoint.save(made, TINY, tmp_path / "with")
    restored.scaler.scale(torch.ones(()))  # in use, or fresh as when a run begins: both take it
    for taker in (restored, without):
        checkpoint.load(taker, tmp_path / "with")
        assert taker.scaler is not None
        assert taker.scaler.state_dict() == made.scaler.state_dict()


def test_a_checkpoint_without_a_loss_scale_or_skipped_steps_still_loads(tmp_path: Path) -> None:
    checkpoint.save(state(), TINY, tmp_path)
    path = tmp_path / "state.json"
    record = json.loads(path.read_text())
    assert "scaler" not in record
    del record["progress"]["skipped_steps"]
    path.write_text(json.dumps(record))
    restored = replace(state(), scaler=GradScaler("cpu"))
    checkpoint.load(restored, tmp_path)
    assert restored.scaler is not None
    assert restored.scaler.get_scale() == 2.0**16
    assert restored.progress == Progress()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def turn_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "spoil", "reason"),
    [
        ("files.json", Path.unlink, "files.json.* is missing"),
        ("files.json", cut, "files.json is damaged"),
        ("files.json", lambda p: p.write_text("[1]"), "files.json is damaged"),
        ("files.json", lambda p: p.write_bytes(b""), "files.json is damaged"),
        ("model.safetensors", Path.unlink, "model.safetensors.* is missing"),
        ("model.safetensors", turn_a_bit, "model.safetensors does not match its sha256"),
        ("ema.safetensors", cut, "ema.safetensors does not match"),
        ("optim.safetensors", turn_a_bit, "optim.safetensors does not match"),
        ("state.json", turn_a_bit, "state.json does not match"),
        ("config.json", cut, "config.json does not match"),
    ],
)
def test_a_spoilt_checkpoint_is_passed_over_with_a_note(
    run: LocalStore, tmp_path: Path, file: str, spoil: Callable[[Path], object], reason: str
) -> None:
    made = state()
    publish(run, made, 5)
    newest = publish(run, made, 10)
    spoil(run.root / "checkpoints" / newest / file)
    notes: list[str] = []
    fetched = checkpoint.fetch_newest(run, tmp_path / "there", notes.append)
    assert fetched is not None
    assert fetched.name == "step-00000005-a1"
    assert len(notes) == 1
    assert re.search(f"skipping checkpoint {newest}: .*{reason}", notes[0])


def test_only_what_is_asked_for_is_fetched_and_looked_at(run: LocalStore, tmp_path: Path) -> None:
    name = publish(run, state(steps=1), 1)
    run.delete(f"checkpoints/{name}/optim.safetensors")
    run.put(f"checkpoints/{name}/ema.safetensors", b"spoilt")
    fetched = checkpoint.fetch(run, name, tmp_path / "facts", checkpoint.FACTS)
    assert sorted(path.name for path in fetched.iterdir()) == ["config.json", "files.json", "state.json"]
    with pytest.raises(ValueError, match=r"ema\.safetensors does not match"):
        checkpoint.fetch(run, name, tmp_path / "model", checkpoint.MODEL)
    with pytest.raises(ValueError, match=r"optim\.safetensors is missing"):
        checkpoint.fetch(run, name, tmp_path / "all")


def test_a_run_without_a_whole_checkpoint_has_none(run: LocalStore, tmp_path: Path) -> None:
    assert checkpoint.fetch_newest(run, tmp_path, pytest.fail) is None
    run.put("checkpoints/step-00000001-a1/model.safetensors", b"half")
    notes: list[str] = []
    assert checkpoint.fetch_newest(run, tmp_path, notes.append) is None
    assert len(notes) == 1


def test_what_names_a_place_elsewhere_is_not_followed(run: LocalStore, tmp_path: Path) -> None:
    run.put("checkpoints/step-00000001-a1/files.json", json.dumps({"../../../outside": "0"}).encode())
    (run.root.parent / "outside").write_text("x")
    notes: list[str] = []
    assert checkpoint.fetch_newest(run, tmp_path / "a" / "b" / "c", notes.append) is None
    assert len(notes) == 1
    assert not list((tmp_path / "a").rglob("outside"))


class LosingStore(LocalStore):
    """Loses the end of what is put under one name and says nothing."""

    def put(self, key: str, data: bytes | memoryview | Path, *, if_absent: bool = False) -> None:
        sent = data.read_bytes() if isinstance(data, Path) else bytes(data)
        super().put(key, sent[:-3] if key.endswith("optim.safetensors") else sent, if_absent=if_absent)


def test_what_did_not_arrive_whole_is_not_published(tmp_path: Path) -> None:
    run = LosingStore(str(tmp_path / "run"), tmp_path / "run")
    with pytest.raises(OSError, match=r"optim\.safetensors did not arrive whole"):
        publish(run, state(), 1)
    assert checkpoint.fetch_newest(run, tmp_path / "there", lambda _: None) is None


def test_the_newest_and_the_best_are_kept(run: LocalStore, tmp_path: Path) -> None:
    made = state()
    for step in (1, 2, 3, 4, 5):
        name = publish(run, made, step, best=min(step, 2))
        checkpoint.prune(run, name, 2)
    assert checkpoint.names(run) == [checkpoint.checkpoint_name(s, 1) for s in (5, 4, 2)]
    assert {e.key.split("/")[1] for e in run.list("checkpoints/")} == set(checkpoint.names(run))


def test_the_best_one_is_there_whichever_kept_one_training_resumes_from(
    run: LocalStore, tmp_path: Path
) -> None:
    made = state()
    for step, best in ((1, 1), (2, 1), (3, 3)):
        name = publish(run, made, step, best)
        checkpoint.prune(run, name, 2)
    turn_a_bit(run.root / "checkpoints" / "step-00000003-a1" / "model.safetensors")
    fetched = checkpoint.fetch_newest(run, tmp_path / "there", lambda _: None)
    assert fetched is not None
    best_name = checkpoint.read_progress(fetched).best
    assert best_name == "step-00000001-a1"
    checkpoint.fetch(run, best_name, tmp_path / "best")


def test_damaged_ones_of_an_abandoned_attempt_take_no_good_one_s_place(
    run: LocalStore, tmp_path: Path
) -> None:
    made = state()
    for step in (1, 8, 9):
        publish(run, made, step)
    for step in (8, 9):
        turn_a_bit(run.root / "checkpoints" / checkpoint.checkpoint_name(step, 1) / "model.safetensors")
    # Resumed from step 1, training publishes step 2.
    name = publish(run, made, 2)
    checkpoint.prune(run, name, 1)
    assert checkpoint.names(run) == [name]


def test_another_architecture_is_refused_by_the_name_of_a_tensor(tmp_path: Path) -> None:
    checkpoint.save(state(), TINY, tmp_path / "c")
    wider = state(with_overrides(TINY, {"model.features": 4}))
    with pytest.raises(InputError) as caught:
        checkpoint.load(wider, tmp_path / "c")
    assert "first down.0.layers.0.weight: (2, 3, 3, 3) in the file, (4, 3, 3, 3) in the model" in str(
        caught.value
    )
    with pytest.raises(InputError, match="None in the file"):
        checkpoint.load_weights(
            UNet(with_overrides(TINY, {"model.depth": 3}).model), tmp_path / "c" / "model.safetensors"
        )


def test_resuming_with_an_average_that_was_never_kept_is_refused(tmp_path: Path) -> None:
    checkpoint.save(state(with_overrides(TINY, {"optim.ema": None})), TINY, tmp_path / "c")
    assert not (tmp_path / "c" / "ema.safetensors").exists()
    with pytest.raises(InputError, match=r"no moving average; resume with --set optim\.ema=null"):
        checkpoint.load(state(), tmp_path / "c")


def test_the_progress_is_plain_json(tmp_path: Path) -> None:
    checkpoint.save(state(), TINY, tmp_path / "c")
    record = json.loads((tmp_path / "c" / "state.json").read_text())
    assert record["progress"] == asdict(Progress())


def test_names_order_like_steps() -> None:
    steps = [0, 9, 10, 99_999_999]
    listed = [checkpoint.checkpoint_name(step, 1) for step in steps]
    assert listed == sorted(listed)
    assert all(checkpoint.is_name(name) for name in listed)
    assert not checkpoint.is_name("step-1/..")


def test_nothing_in_the_package_unpickles() -> None:
    sources = sorted(Path(bts_dist.__file__).parent.glob("*.py"))
    assert len(sources) > 15
    forbidden = re.compile(r"torch\.load\b|\bpickle|\bshelve\b|\bmarshal\b|_object\(|allow_pickle")
    assert [
        p.name for p in sources if forbidden.search(re.sub(r'""".*?"""|#.*', "", p.read_text(), flags=re.S))
    ] == []
