"""What is exported predicts what scoring predicts, or is not published; three lines of Python load it."""

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import pack_phantom  # type: ignore[import-not-found]
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from bts_dist import export
from bts_dist.checkpoint import Progress
from bts_dist.components import keep_components
from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.ensemble import Ensemble
from bts_dist.export import (
    Export,
    check_free,
    check_packages,
    engines,
    export_model,
    trace,
    write_network,
)
from bts_dist.exported import load_exported, open_exported, sha256_of
from bts_dist.inference import Inference, Member
from bts_dist.model import Model, ModelPlace, as_validated
from bts_dist.parity import Engine, ParityError, measure, parity_slices, read_volume, scored
from bts_dist.unet import make_unet
from bts_dist.volume_model import VolumeModel
from shards.config import HoldoutSplit, PhantomConfig
from shards.errors import InputError
from shards.reader import PackedData

CPU = torch.device("cpu")
THRESHOLD = 0.3
FILES = {"MODEL_CARD.md", "config.json", "export.json", "model.onnx", "model.pt2", "model.safetensors"}
Pixels = NDArray[np.uint8]


def make_model(config: Config) -> Model:
    """A model with random weights, whose probabilities lie on both sides of the threshold."""
    torch.manual_seed(3)
    network = make_unet(config.model, CPU)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point() and "var" not in name:
                tensor += 0.2 * torch.randn(tensor.shape)
        for head in network.heads:
            head.weight.normal_()
            head.bias.fill_(-1.0)
    progress = Progress(
        epoch=1, step=8, val_dice=[0.25], threshold=THRESHOLD, data_id="0" * 16, patients=["A"]
    )
    return Model(network.eval(), config, progress, CPU, as_validated(progress, config))


def volume_of(shape: tuple[int, int, int], seed: int = 0) -> Pixels:
    grey = np.random.default_rng(seed).gamma(1, 40, (*shape, 3))
    return grey.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patients whose slices have an odd side."""
    phantom = PhantomConfig(patients=3, size=37, min_slices=3, max_slices=5, seed=2)
    return pack_phantom(tmp_path_factory.mktemp("odd"), phantom, HoldoutSplit(), "ODD")


@pytest.fixture(scope="module")
def model(config: Config) -> Model:
    return make_model(config)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> ModelPlace:
    return ModelPlace(str(tmp_path_factory.mktemp("runs") / "run"), "step-00000008-a1")


@pytest.fixture(scope="module")
def published(
    model: Model, place: ModelPlace, config: Config, tmp_path_factory: pytest.TempPathFactory
) -> Export:
    """Group norm, mirrored, at native size; compared on the validation patients of the packed phantom."""
    return export_model(place, model, config, tmp_path_factory.mktemp("exports") / "new" / "out")


def test_a_published_export_is_whole(published: Export) -> None:
    assert {path.name for path in published.folder.iterdir()} == FILES == published.sizes.keys()
    assert [path.name for path in published.folder.parent.iterdir()] == ["out"]
    record = json.loads((published.folder / "export.json").read_text())
    assert record["files"].keys() == FILES - {"export.json"}
    for name, entry in record["files"].items():
        assert entry == {"sha256": sha256_of(published.folder / name), "bytes": published.sizes[name]}
    assert record["inference"]["threshold"] == THRESHOLD
    assert record["parity"]["real"]
    assert record["versions"]["torch"] == torch.__version__


def test_no_path_of_this_machine_leaves_with_it(published: Export, packed: Path) -> None:
    with zipfile.ZipFile(published.folder / "model.pt2") as archive:
        members = [archive.read(name) for name in archive.namelist()]
    for data in [*members, *(path.read_bytes() for path in published.folder.iterdir())]:
        for private in (Path(export.__file__).parent, torch.__path__[0], packed, published.folder):
            assert str(private).encode() not in data


def test_it_predicts_what_scoring_predicts(published: Export, config: Config) -> None:
    assert len(published.parity) == 3
    for parity in published.parity.values():
        assert parity.max_difference < 1e-5
        assert parity.differing_pixels == 0
        assert 0.05 < parity.tumour_pixels / parity.num_pixels < 0.95
    data = PackedData(config.data.shards)
    num = data.manifest.num_samples("val")
    assert published.slices == f"{num} slices of 2 validation patients of data set {data.manifest.data_id}"


@pytest.mark.parametrize("shape", [(1, 32, 32), (7, 32, 32), (3, 34, 50)])
def test_every_file_takes_other_sizes_than_it_was_made_with(
    published: Export, shape: tuple[int, int, int]
) -> None:
    volume = volume_of(shape)
    wanted, mask = load_exported(published.folder).predict(volume)
    assert wanted.shape == mask.shape == shape
    assert 0.05 < mask.mean() < 0.95
    for name, engine in engines(published.folder).items():
        probability, found = engine(volume)
        assert (probability.dtype, found.dtype) == (np.float32, np.uint8), name
        np.testing.assert_allclose(probability, wanted, atol=1e-5, err_msg=name)


def test_the_threshold_is_inside(published: Export, model: Model) -> None:
    volume = volume_of((2, 32, 32))
    for name, engine in engines(published.folder).items():
        probability, mask = engine(volume)
        assert np.array_equal(mask, probability > np.float32(THRESHOLD)), name
        assert not np.array_equal(mask, probability > 0.5), name
    low, high = (
        VolumeModel(model.network, None, t, mirror=True)(torch.from_numpy(volume))[1] for t in (0.1, 0.6)
    )
    assert int(low.sum()) > int(high.sum())


def assert_parity(model: Model, engines: dict[str, Engine]) -> None:
    """On the odd slices of the config's data set, and on others that the model was not traced with."""
    with parity_slices(model.config, model) as slices:
        assert slices.source.reader.native_size == (37, 37)
        found = measure(model, slices, engines, scored(model, slices, batch=2))
    assert max(parity.max_difference for parity in found.values()) < 1e-5
    volume = volume_of((2, 29, 41))
    whole = VolumeModel(model.network, model.config.data.image_size, THRESHOLD, mirror=model.inference.mirror)
    with torch.inference_mode():
        wanted, _ = whole(torch.from_numpy(volume))
    for name, engine in engines.items():
        np.testing.assert_allclose(engine(volume)[0], wanted, atol=1e-5, err_msg=name)


def test_batch_norm_and_odd_slices_scaled_down(config: Config, odd: Path, tmp_path: Path) -> None:
    changed = {"data.shards": str(odd), "model.norm": "batch", "data.image_size": 16, "score.mirror": False}
    model = make_model(with_overrides(config, changed))
    write_network(model, tmp_path)
    assert_parity(model, engines(tmp_path))


def test_instance_norm_and_odd_slices_scaled_up(config: Config, odd: Path) -> None:
    changed = {"data.shards": str(odd), "model.norm": "instance", "data.image_size": 48}
    model = make_model(with_overrides(config, changed))
    # Instance norm is group norm with a channel a group, whose ONNX form the published export has.
    program = trace(VolumeModel(model.network, 48, THRESHOLD, mirror=True), 1).module()

    def run(volume: Pixels) -> tuple[NDArray[np.float32], Pixels]:
        with torch.inference_mode():
            probability, mask = program(torch.from_numpy(volume))
        return probability.numpy(), mask.numpy()

    assert_parity(model, {"program": run})


def spoil_onnx(folder: Path) -> None:
    graph = onnx.load(folder / "model.onnx")
    weights = max(graph.graph.initializer, key=lambda tensor: len(tensor.dims))
    values = onnx.numpy_helper.to_array(weights).copy()
    values.flat[0] += 5
    weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
    onnx.save(graph, folder / "model.onnx")


def spoil_program(folder: Path) -> None:
    program = torch.export.load(folder / "model.pt2")
    with torch.no_grad():
        program.state_dict["network.heads.0.bias"] += 0.1
    torch.export.save(program, folder / "model.pt2")


def spoil_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["down.0.layers.0.weight"][0, 0, 0, 0] += 5
    save_file(weights, folder / "model.safetensors")


def spoil_weights_to_nan(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["heads.0.bias"] *= float("nan")
    save_file(weights, folder / "model.safetensors")


@pytest.mark.filterwarnings("ignore:No complete tensor found")  # torch, of every program it saves
@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (spoil_onnx, "model.onnx"),
        (spoil_program, "model.pt2"),
        (spoil_weights, "model.safetensors"),
        (spoil_weights_to_nan, "model.safetensors"),
    ],
)
def test_a_changed_weight_is_found_and_nothing_published(
    published: Export,
    model: Model,
    place: ModelPlace,
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], None],
    name: str,
) -> None:
    def write_spoilt(_: Model, folder: Path) -> None:
        for file in ("config.json", "model.onnx", "model.pt2", "model.safetensors"):
            shutil.copy(published.folder / file, folder)
        spoil(folder)

    monkeypatch.setattr(export, "write_network", write_spoilt)
    with pytest.raises(
        ParityError, match=rf"^{name}[^,]* differs from scoring by up to .*nothing was written"
    ):
        export_model(place, model, config, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_without_readable_data_phantoms_are_compared_and_it_says_so(
    config: Config, odd: Path, everyone: Path, tmp_path: Path
) -> None:
    model = make_model(config)
    for shards, reason in ((tmp_path, "no packed data set could be read"), (everyone, "has no validation")):
        elsewhere = with_overrides(config, {"data.shards": str(shards), "phantom.size": 33})
        with parity_slices(elsewhere, model) as slices:
            assert not slices.real
            assert reason in slices.description
            volume = read_volume(slices.source.reader, slices.patients[0])
            assert volume.shape[1] % 2 == 0
    with (
        pytest.raises(InputError, match="37 × 37 pixels do not divide by 2"),
        parity_slices(with_overrides(config, {"data.shards": str(odd)}), model),
    ):
        pass


def test_three_lines_load_it(published: Export) -> None:
    model = load_exported(str(published.folder))
    mask = model(volume_of((4, 32, 32)))
    assert mask.shape == (4, 32, 32)
    assert set(np.unique(mask)) == {0, 1}


def test_the_division_into_batches_changes_nothing(published: Export) -> None:
    model, volume = load_exported(published.folder), volume_of((5, 32, 32))
    np.testing.assert_allclose(model.predict(volume, batch=2)[0], model.predict(volume)[0], atol=1e-6)


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        (np.zeros((2, 32, 32, 3), np.float32), "found float32"),
        ([[1]], "found list"),
        (np.zeros((32, 32, 3), np.uint8), r"found \(32, 32, 3\)"),
        (np.zeros((0, 32, 32, 3), np.uint8), r"found \(0, 32, 32, 3\)"),
        (np.zeros((1, 33, 32, 3), np.uint8), "33 × 32 pixels do not divide by 2"),
    ],
)
def test_a_volume_that_does_not_fit_is_refused(published: Export, volume: Pixels, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_exported(published.folder)(volume)


def test_damaged_exports_are_refused(published: Export, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name a folder that `bts export` wrote"):
        load_exported(tmp_path)
    folder = shutil.copytree(published.folder, tmp_path / "copy")
    spoil_weights(folder)
    with pytest.raises(InputError, match=r"model\.safetensors is not as export\.json says"):
        load_exported(folder)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["features"] = 5
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="tensors do not fit the configured model"):
        open_exported(folder, CPU)
    (folder / "config.json").write_text(json.dumps(config | {"format": "bts-export/9"}))
    with pytest.raises(InputError, match=r"not of bts-export/1: format"):
        open_exported(folder, CPU)
    (folder / "config.json").write_text("[]")
    with pytest.raises(InputError, match="holds a list"):
        open_exported(folder, CPU)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json is missing"):
        load_exported(folder)


def test_a_place_that_is_taken_or_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("in the way")
    check_free(tmp_path / "empty")
    check_free(tmp_path / "new")
    for out in (tmp_path, tmp_path / "file"):
        with pytest.raises(InputError, match=f"{out} exists and is not an empty folder"):
            check_free(out)
    with pytest.raises(InputError, match="local folder"):
        check_free(Path("s3://bucket/out"))


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    check_packages()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(InputError, match=r"needs onnxscript; .*pip install .*'\.\[export\]'"):
        check_packages()


def test_an_ensemble_is_exported_as_one(config: Config, odd: Path, tmp_path: Path) -> None:
    model = make_model(with_overrides(config, {"data.shards": str(odd), "data.image_size": 16}))
    other = make_model(model.config).network
    with torch.no_grad():
        other.heads[0].bias.fill_(1.0)
    several = replace(
        model,
        network=Ensemble([model.network, other]).eval(),
        inference=Inference(THRESHOLD, True, 30, (Member("checkpoints/other", "0" * 64),)),
    )
    write_network(several, tmp_path)
    assert_parity(several, engines(tmp_path))
    loaded = open_exported(tmp_path, CPU)
    assert (loaded.config.members, loaded.config.components) == (2, 30)
    volume = volume_of((4, 32, 32))
    probability, above = loaded.predict(volume)
    alone = VolumeModel(model.network, 16, THRESHOLD, mirror=True)(torch.from_numpy(volume))[0]
    assert np.abs(probability - alone.detach().numpy()).max() > 0.01
    # Called as scoring predicts: with components of fewer voxels dropped.
    wanted = keep_components(above > 0, 30)
    assert np.array_equal(loaded(volume), wanted)
