import json
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from fault_proxy import Fault, FaultProxy, refusal
from packed_set import PackedSet
from PIL import Image

from shards.config import DataConfig, StoreConfig
from shards.encode import encode_meta
from shards.errors import InputError
from shards.layout import find_patients
from shards.manifest import dump_manifest, load_manifest
from shards.meta import Facts
from shards.reader import PackedData, SplitReader
from shards.source import read_volume
from shards.store import StoreError, open_store
from shards.verify import SourceReport


@pytest.fixture
def copied(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def readers(data: PackedData) -> list[SplitReader]:
    return [data.training("train"), data.training("val"), data.test()]


def test_every_slice_of_the_source_comes_back_bit_for_bit(packed: Path, phantom: Path) -> None:
    source = open_store(str(phantom))
    patients = {p.patient: p for p in find_patients(source)[0]}
    seen = []
    for reader in readers(PackedData(str(packed))):
        for patient in reader.index.patients():
            volume = read_volume(source, patients[patient])
            samples = [reader.read(int(i)) for i in reader.index.samples_of(patient)]
            np.testing.assert_array_equal(np.stack([image for image, _ in samples]), volume.image_NHWC)
            np.testing.assert_array_equal(np.stack([mask for _, mask in samples]), volume.mask_NHW)
            seen.append(patient)
    assert sorted(seen) == sorted(patients)


def test_the_index_agrees_with_the_samples_and_their_json(packed: Path) -> None:
    for reader in readers(PackedData(str(packed))):
        index = reader.index
        assert len(index) == sum(index.shard_sizes) == len(set(index.key))
        np.testing.assert_array_equal(
            index.shard, np.repeat(np.arange(len(index.shard_sizes)), index.shard_sizes)
        )
        for sample in range(len(index)):
            image, mask = reader.read(sample)
            assert (image.dtype, mask.dtype, mask.shape) == (np.uint8, np.uint8, reader.native_size)
            assert int(mask.sum()) == index.tumour_pixels[sample]
            np.testing.assert_array_equal(reader.read_mask(sample), mask)
            assert index.key[sample] == f"{index.patient[sample]}_{index.slice_number[sample]:04d}"
            assert index.institution[sample] == index.patient[sample].split("_")[1]
        assert (index.std > 0).all()
        assert (index.mean > 0).all()


def test_facts_are_those_of_the_verified_source(packed: Path, report: SourceReport) -> None:
    missing = {scan.patient: scan.missing for scan in report.scans}
    for reader in readers(PackedData(str(packed))):
        for sample, patient in enumerate(reader.index.patient):
            assert reader.read_facts(sample) == Facts(missing[patient], None)


def test_facts_that_cannot_be_true_are_refused_with_shard_and_sample(packed: Path, tmp_path: Path) -> None:
    data = PackedSet.read(packed)
    shard = next(name for name in data.shards if "val" in name)
    name, meta = next(member for member in data.members(shard) if member[0].endswith(".json"))
    data.put_member(shard, name, encode_meta(json.loads(meta) | {"missing": ["flair"]}))
    data.write(tmp_path)
    with pytest.raises(InputError, match=rf"{shard}: {name}: says that .*'flair'.* pack the data again"):
        PackedData(str(tmp_path)).training("val").read_facts(0)


def test_patients_are_read_in_slice_order(packed: Path) -> None:
    index = PackedData(str(packed)).training("train").index
    for patient in index.patients():
        samples = index.samples_of(patient)
        numbers = index.slice_number[samples]
        assert {index.patient[i] for i in samples} == {patient}
        assert numbers.tolist() == list(range(1, len(numbers) + 1))


def test_training_cannot_ask_for_test_samples(packed: Path) -> None:
    data = PackedData(str(packed))
    with pytest.raises(ValueError, match=r"training on the test split is not possible; only .'train', 'val'"):
        data.training("test")  # type: ignore[arg-type]
    keys = [set(reader.index.patient) for reader in readers(data)]
    assert keys[0].isdisjoint(keys[2])
    assert keys[1].isdisjoint(keys[2])


def resized_to(reader: SplitReader, sample: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    image, mask = np.full((size, size, 3), 99, np.uint8), np.full((size, size), 99, np.uint8)
    reader.read_resized(sample, image, mask)
    return image, mask


def test_resizing_averages_images_and_asks_masks_for_a_majority(packed: Path) -> None:
    reader = PackedData(str(packed)).training("train")
    sample = int(np.argmax(reader.index.tumour_pixels))
    image, mask = reader.read(sample)
    small, small_mask = resized_to(reader, sample, 16)
    blocks = image.reshape(16, 2, 16, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(small, blocks, atol=1)
    share = mask.reshape(16, 2, 16, 2).mean(axis=(1, 3))
    np.testing.assert_array_equal(small_mask, share >= 0.5)
    assert (small.dtype, small_mask.dtype) == (np.uint8, np.uint8)
    assert small_mask.any()


def test_the_native_size_is_left_alone(packed: Path) -> None:
    reader = PackedData(str(packed)).test()
    for resized, native in zip(resized_to(reader, 0, 32), reader.read(0), strict=True):
        np.testing.assert_array_equal(resized, native)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1024])


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (flip, "sha256 is .*the shard was changed or damaged"),
        (truncate, "bytes found.; the shard was changed or damaged"),
        (Path.unlink, "is missing; copy or pack it again"),
    ],
)
def test_a_harmed_shard_is_refused_with_its_name_and_the_sample(
    copied: Path, harm: Callable[[Path], None], said: str
) -> None:
    harm(copied / "shards" / "val-000000.tar")
    data = PackedData(str(copied))
    key = data.training("val").index.key[0]
    for read in (data.training("val").read, data.training("val").read_mask):
        with pytest.raises(InputError, match=rf"^shards/val-000000\.tar: {key}\..*{said}"):
            read(0)
    data.training("train").read(0)


def test_a_shard_that_is_cut_off_after_its_check_is_refused_too(copied: Path) -> None:
    reader = PackedData(str(copied)).test()
    reader.read(0)
    (copied / "shards" / "test-000000.tar").write_bytes(b"")
    with pytest.raises(InputError, match=rf"^shards/test-000000\.tar: {reader.index.key[0]}\.image\.png: "):
        reader.read(0)


def test_a_shard_that_is_removed_after_its_check_can_be_read_on(copied: Path) -> None:
    reader = PackedData(str(copied)).test()
    image, _ = reader.read(0)
    (copied / "shards" / "test-000000.tar").unlink()
    np.testing.assert_array_equal(reader.read(0)[0], image)


def test_a_manifest_of_another_size_is_found_out(copied: Path) -> None:
    manifest = load_manifest(open_store(str(copied)))
    (copied / "manifest.json").write_bytes(dump_manifest(manifest.model_copy(update={"height": 64})))
    with pytest.raises(InputError, match=r"\.image\.png: \(32, 32\) pixels, the manifest says \(64, 32\)"):
        PackedData(str(copied)).test().read(0)
    with pytest.raises(InputError, match=r"\.mask\.png: \(32, 32\) pixels, the manifest says \(64, 32\)"):
        PackedData(str(copied)).test().read_mask(0)


def test_a_folder_without_a_data_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path} holds no packed data set"):
        PackedData(str(tmp_path))


def test_threads_share_a_reader(packed: Path) -> None:
    reader = PackedData(str(packed)).training("train")
    start = threading.Barrier(4)

    def masks(_: int) -> list[int]:
        start.wait()
        return [int(reader.read_mask(i).sum()) for i in range(len(reader.index))]

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(masks, range(4)))
    assert found == [reader.index.tumour_pixels.tolist()] * 4


@pytest.fixture
def on_s3(packed: Path, bucket: str) -> str:
    """The packed phantom in a bucket."""
    uri = f"{bucket}/data/phantom"
    store, local = open_store(uri), open_store(str(packed))
    for entry in local.list():
        store.put(entry.key, local.get(entry.key))
    return uri


def test_a_node_keeps_what_it_fetched_and_fetches_again_what_was_harmed(on_s3: str, tmp_path: Path) -> None:
    config = StoreConfig(cache_dir=str(tmp_path / "cache"))
    data = PackedData(on_s3, config)
    shard = next(s for s in data.manifest.shards if s.split == "test")
    kept = tmp_path / "cache" / f"{shard.sha256}.tar"
    image, _ = data.test().read(0)
    assert [path.name for path in (tmp_path / "cache").glob("*.*")] == [kept.name]
    assert kept.stat().st_size == shard.bytes

    flip(kept)
    np.testing.assert_array_equal(PackedData(on_s3, config).test().read(0)[0], image)

    open_store(on_s3).delete(shard.name)
    np.testing.assert_array_equal(PackedData(on_s3, config).test().read(0)[0], image)
    kept.unlink()
    with pytest.raises(InputError, match=rf"^{shard.name}: .*{on_s3}/{shard.name} is missing"):
        PackedData(on_s3, config).test().read(0)


def test_a_shard_that_is_harmed_in_the_bucket_is_refused_and_not_kept(on_s3: str, tmp_path: Path) -> None:
    store = open_store(on_s3)
    store.put("shards/test-000000.tar", store.get("shards/test-000000.tar")[:-1])
    config = StoreConfig(cache_dir=str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"test-000000\.tar: sha256 is .*changed or damaged"):
        PackedData(on_s3, config).test().read(0)
    assert not list((tmp_path / "cache").glob("*.*"))


def gets(proxy: FaultProxy) -> int:
    return sum(request.path.endswith(".tar") for request in proxy.requests if request.method == "GET")


@pytest.mark.parametrize(("cache", "times"), [("none", 2), ("disk", 1)])
def test_a_node_fetches_a_shard_once_if_it_may_keep_it(
    on_s3: str, s3_proxy: FaultProxy, tmp_path: Path, cache: Literal["none", "disk"], times: int
) -> None:
    config = StoreConfig(cache_dir=str(tmp_path / "cache"))
    for _ in range(2):
        reader = PackedData(on_s3, config, DataConfig(cache=cache)).test()
        assert len(reader.index.shard_sizes) == 1
        for sample in (0, 1, 0):
            reader.read(sample)
        reader.close()
    assert gets(s3_proxy) == times
    assert (tmp_path / "cache").exists() == (cache == "disk")


def test_announced_shards_are_fetched_in_the_background(
    on_s3: str, s3_proxy: FaultProxy, tmp_path: Path
) -> None:
    reader = PackedData(on_s3, StoreConfig(cache_dir=str(tmp_path)), DataConfig(cache="disk")).training(
        "train"
    )
    num = len(reader.index.shard_sizes)
    reader.announce(range(num))
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*.tar"))) < num and time.monotonic() < deadline:
        time.sleep(0.01)
    assert gets(s3_proxy) == num
    for sample in range(len(reader.index)):
        reader.read(sample)
    assert gets(s3_proxy) == num
    reader.close()


def test_a_failed_announcement_shows_when_the_shard_is_read_and_can_be_tried_again(
    on_s3: str, s3_proxy: FaultProxy, tmp_path: Path
) -> None:
    store = StoreConfig(cache_dir=str(tmp_path), attempts=1)
    reader = PackedData(on_s3, store, DataConfig(cache="disk")).test()
    s3_proxy.faults.append(Fault("GET", "answer", answer=refusal(500, "InternalError")))
    reader.announce([0])
    with pytest.raises(StoreError, match=r"test-000000\.tar"):
        reader.read(0)
    reader.read(0)
    reader.close()


def test_a_half_covered_pixel_is_tumour() -> None:
    """What ``read_resized`` relies on: Pillow rounds the mean of 0 and 255 up."""
    half = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8))
    assert np.asarray(half.resize((1, 1), Image.Resampling.BOX)) == 128
