import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from shards import pack as packing
from shards.check import check_packed
from shards.config import HoldoutSplit, NoSplit, SliceSplit, StoreConfig
from shards.errors import InputError
from shards.manifest import Manifest, load_manifest
from shards.reader import PackedData
from shards.store import LocalStore, open_store
from shards.verify import SourceReport, verify_source

PackTo = Callable[..., Manifest]


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {f.relative_to(folder).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_packing_again_or_in_two_processes_gives_the_same_bytes(
    pack_to: PackTo, packed: Path, tmp_path: Path
) -> None:
    first = pack_to(tmp_path / "again")
    second = pack_to(tmp_path / "parallel", workers=2)
    assert digests(tmp_path / "again") == digests(tmp_path / "parallel") == digests(packed)
    assert first == second == load_manifest(open_store(str(packed)))


def test_progress_counts_samples_and_bytes(pack_to: PackTo, report: SourceReport, tmp_path: Path) -> None:
    seen: list[tuple[int, int, int]] = []
    manifest = pack_to(
        tmp_path, samples_per_shard=7, split=NoSplit(), progress=lambda *done: seen.append(done)
    )
    total = sum(scan.num_slices for scan in report.scans)
    ends = list(itertools.accumulate(shard.bytes for shard in manifest.shards))
    assert seen == [(min(n, total), total, end) for n, end in zip(range(7, total + 7, 7), ends, strict=True)]


def test_a_copy_of_the_source_packs_to_the_same_bytes_but_for_its_name(
    pack_to: PackTo, phantom: Path, packed: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(phantom, tmp_path / "copy")
    manifest = pack_to(
        tmp_path / "data", report=verify_source(str(source), StoreConfig(), 1), source=str(source)
    )
    here, there = digests(tmp_path / "data"), digests(packed)
    assert {name for name in here.keys() | there.keys() if here.get(name) != there.get(name)} == {
        "manifest.json"
    }
    original = load_manifest(open_store(str(packed)))
    assert manifest.provenance.source == str(source)
    renamed = original.provenance.model_copy(update={"source": str(source)})
    assert manifest == original.model_copy(update={"provenance": renamed})


def test_a_finished_data_set_is_manifest_index_and_shards(packed: Path) -> None:
    manifest = check_packed(str(packed), StoreConfig())
    assert sorted(os.listdir(packed)) == ["index.parquet", "manifest.json", "shards"]
    assert sorted(digests(packed)) == sorted(
        ["index.parquet", "manifest.json", *(s.name for s in manifest.shards)]
    )
    for shard in manifest.shards:
        data = (packed / shard.name).read_bytes()
        assert (shard.bytes, shard.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert manifest.provenance.pack.samples_per_shard == 5
    assert manifest.provenance.split == HoldoutSplit()


def test_slices_that_are_split_are_whole_samples_of_the_same_patients(
    pack_to: PackTo, packed: Path, tmp_path: Path
) -> None:
    split = SliceSplit(train=0.5, val=0.25, test=0.25)
    pack_to(tmp_path / "data", split=split)
    pack_to(tmp_path / "again", split=split, workers=2)
    assert digests(tmp_path / "data") == digests(tmp_path / "again")
    manifest = check_packed(str(tmp_path / "data"), StoreConfig())
    assert manifest.splits_patients
    assert manifest.provenance.split == split
    assert set(manifest.patients["train"]) & set(manifest.patients["test"])
    by_patient, by_slice = samples_of(packed), samples_of(tmp_path / "data")
    assert by_slice == by_patient
    assert not load_manifest(open_store(str(packed))).splits_patients


def samples_of(folder: Path) -> dict[str, tuple[bytes, bytes]]:
    """Pixels of every sample of a data set by key, whatever its split."""
    data = PackedData(str(folder))
    found = {}
    for reader in (data.training("train"), data.training("val"), data.test()):
        for sample, key in enumerate(reader.index.key):
            image, mask = reader.read(sample)
            found[key] = image.tobytes(), mask.tobytes()
    return found


def test_a_sample_tells_of_its_patient_and_volume(packed: Path, report: SourceReport) -> None:
    scan = next(s for s in report.scans if s.missing)
    (path,) = [
        p for p in packed.glob("shards/*.tar") if f"{scan.patient}_0002.json".encode() in p.read_bytes()
    ]
    with tarfile.open(path) as tar:
        member = tar.extractfile(f"{scan.patient}_0002.json")
        assert member is not None
        meta = json.load(member)
    assert meta == {
        "patient": scan.patient,
        "slice": 2,
        "num_slices": scan.num_slices,
        "institution": scan.institution,
        "tumour_pixels": scan.tumour_pixels[1],
        "missing": list(scan.missing),
        "mean": pytest.approx(scan.mean, abs=1e-4),
        "std": pytest.approx(scan.std, abs=1e-4),
    }


KILLED_PACKER = """
import sys, time
from shards.config import HoldoutSplit, PackConfig, StoreConfig
from shards.pack import pack
from shards.verify import verify_source

if __name__ == "__main__":
    source, dest = sys.argv[1:]
    pack(
        verify_source(source, StoreConfig(), 1), dest, source=source, split=HoldoutSplit(),
        config=PackConfig(samples_per_shard=5, workers=1), store=StoreConfig(),
        progress=lambda *_: time.sleep(600),
    )
"""


@pytest.fixture(scope="module")
def killed(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a packer left that was killed after its first shard."""
    dest = tmp_path_factory.mktemp("killed") / "data"
    with subprocess.Popen([sys.executable, "-c", KILLED_PACKER, str(phantom), str(dest)]) as packer:
        while not list(dest.glob("parts/*.jsonl")):
            assert packer.poll() is None
            time.sleep(0.02)
        packer.send_signal(signal.SIGKILL)
    assert len(list(dest.glob("parts/*.jsonl"))) == 1
    assert not (dest / "manifest.json").exists()
    return dest


@pytest.fixture
def half_packed(killed: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(killed, tmp_path / "half"))


def count_builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    built: list[str] = []
    build = packing.build_shard

    def counted(task: packing.ShardTask) -> object:
        built.append(task.plan.name)
        return build(task)

    monkeypatch.setattr(packing, "build_shard", counted)
    return built


def test_a_killed_packer_is_taken_up_where_it_was(
    half_packed: Path, pack_to: PackTo, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = count_builds(monkeypatch)
    manifest = pack_to(half_packed)
    assert digests(half_packed) == digests(packed)
    assert sorted(os.listdir(half_packed)) == ["index.parquet", "manifest.json", "shards"]
    assert built == [s.name for s in manifest.shards[1:]]


@pytest.mark.parametrize("harm", ["shard", "part", "no shard"])
def test_what_a_killed_packer_left_is_not_trusted_blindly(
    half_packed: Path, pack_to: PackTo, packed: Path, harm: str
) -> None:
    (part,) = half_packed.glob("parts/*.jsonl")
    shard = half_packed / "shards" / f"{part.stem}.tar"
    if harm == "shard":
        data = bytearray(shard.read_bytes())
        data[600] ^= 1
        shard.write_bytes(data)
    elif harm == "part":
        data = bytearray(part.read_bytes())
        data[len(data) // 3] ^= 1
        part.write_bytes(data)
    else:
        shard.unlink()
    pack_to(half_packed)
    assert digests(half_packed) == digests(packed)


def test_what_a_packer_left_that_was_killed_while_tidying_up_goes(
    pack_to: PackTo, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_tidy", lambda _: None)
        manifest = pack_to(tmp_path / "data")
    assert (tmp_path / "data" / "plan.json").exists()
    built = count_builds(monkeypatch)
    assert pack_to(tmp_path / "data") == manifest
    assert built == []
    assert digests(tmp_path / "data") == digests(packed)


OTHERS = [
    {"encoding": "webp"},
    {"samples_per_shard": 6},
    {"split": HoldoutSplit(seed=1)},
    {"split": NoSplit()},
    {"split": SliceSplit()},
]


@pytest.mark.parametrize("settings", OTHERS)
def test_another_data_set_is_never_overwritten(
    pack_to: PackTo, packed: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    dest = shutil.copytree(packed, tmp_path / "copy")
    with pytest.raises(InputError, match=rf"{dest} already holds another data set .*--set data\.shards="):
        pack_to(dest, **settings)
    assert digests(dest) == digests(packed)
    assert pack_to(dest).data_id == load_manifest(open_store(str(packed))).data_id


@pytest.mark.parametrize("settings", OTHERS)
def test_a_half_filled_data_set_is_never_mixed_with_another(
    half_packed: Path, pack_to: PackTo, packed: Path, settings: dict[str, object]
) -> None:
    before = digests(half_packed)
    with pytest.raises(InputError, match=rf"{half_packed} is half filled with another data set"):
        pack_to(half_packed, **settings)
    assert digests(half_packed) == before
    pack_to(half_packed)
    assert digests(half_packed) == digests(packed)


def test_shards_of_nobody_are_left_alone(pack_to: PackTo, packed: Path, tmp_path: Path) -> None:
    dest = shutil.copytree(packed, tmp_path / "copy")
    (dest / "manifest.json").unlink()
    before = digests(dest)
    with pytest.raises(
        InputError, match=rf"{dest} holds shards/.*\.tar but no manifest\.json; choose another"
    ):
        pack_to(dest)
    assert digests(dest) == before


def test_a_store_that_would_overwrite_is_refused_before_anything_is_written(
    pack_to: PackTo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(store: LocalStore) -> None:
        raise InputError(f"{store.uri}: overwrites")

    monkeypatch.setattr(LocalStore, "check_conditional_writes", refuse)
    with pytest.raises(InputError, match=rf"^{tmp_path}/data: overwrites$"):
        pack_to(tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("settings", [{}, {"encoding": "webp"}])
def test_a_packer_that_comes_while_another_finishes_writes_nothing(
    pack_to: PackTo,
    packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, object],
) -> None:
    dest = tmp_path / "data"
    put_claim = packing._put_claim

    def late(*given: object) -> object:
        """The other packer does all its work between this one's look at the prefix and its claim."""
        monkeypatch.setattr(packing, "_put_claim", put_claim)
        pack_to(dest)
        return put_claim(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(packing, "_put_claim", late)
    if settings:
        with pytest.raises(InputError, match="already holds another data set"):
            pack_to(dest, **settings)
    else:
        assert pack_to(dest) == load_manifest(open_store(str(packed)))
    assert digests(dest) == digests(packed)


@pytest.mark.parametrize("other", [{}, {"encoding": "webp"}])
def test_of_two_packers_at_once_both_agree_or_one_is_refused(
    pack_to: PackTo, tmp_path: Path, other: dict[str, object]
) -> None:
    def packer(settings: dict[str, object]) -> Manifest | InputError:
        try:
            return pack_to(tmp_path, **settings)
        except InputError as error:
            return error

    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(packer, ({}, other)))
    manifests = [r for r in results if isinstance(r, Manifest)]
    assert len(manifests) == (1 if other else 2)
    assert check_packed(str(tmp_path), StoreConfig()) == manifests[0] == manifests[-1]
    assert sorted(os.listdir(tmp_path)) == ["index.parquet", "manifest.json", "shards"]


def test_a_source_that_changed_since_its_scan_is_refused(
    pack_to: PackTo, phantom: Path, packed: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(phantom, tmp_path / "source")
    report = verify_source(str(source), StoreConfig(), 1)
    file = next(source.glob("PHANTOM_BK*/*_2.tif"))
    original = file.read_bytes()
    Image.fromarray(255 - np.asarray(Image.open(file))).save(file, "TIFF")
    with pytest.raises(InputError, match=rf"{source}/{file.parent.name} changed while it was being packed"):
        pack_to(tmp_path / "data", report=report, source=str(source))
    assert not (tmp_path / "data" / "manifest.json").exists()
    file.write_bytes(original)
    assert pack_to(tmp_path / "data", report=report, source=str(source)).num_samples() > 0
    check_packed(str(tmp_path / "data"), StoreConfig())


def test_a_source_with_errors_is_refused(pack_to: PackTo, phantom: Path, tmp_path: Path) -> None:
    source = shutil.copytree(phantom, tmp_path / "source")
    next(source.glob("PHANTOM_BK*/*_2_mask.tif")).unlink()
    report = verify_source(str(source), StoreConfig(), 1)
    with pytest.raises(
        InputError, match=rf"{source} cannot be packed: .*_2\.tif has no mask; add .*\d errors"
    ):
        pack_to(tmp_path / "data", report=report, source=str(source))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("encoding", "image"), [("png", "image.png"), ("webp", "image.webp"), ("raw", "image.npy")]
)
def test_stock_webdataset_reads_every_sample(
    pack_to: PackTo, report: SourceReport, tmp_path: Path, encoding: str, image: str
) -> None:
    manifest = pack_to(tmp_path, encoding=encoding)
    urls = [f"file:{tmp_path}/{shard.name}" for shard in manifest.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert sorted(s["__key__"] for s in samples) == sorted(
        f"{scan.patient}_{n:04d}" for scan in report.scans for n in range(1, scan.num_slices + 1)
    )
    for sample in samples:
        assert sample[image].shape == (32, 32, 3)
        assert sample[image].dtype == np.uint8
        assert set(np.unique(sample["mask.png"])) <= {0, 255}
        assert (sample["mask.png"][..., 0] > 0).sum() == sample["json"]["tumour_pixels"]
        assert sample["__key__"] == f"{sample['json']['patient']}_{sample['json']['slice']:04d}"


@pytest.mark.parametrize("encoding", ["webp", "raw"])
def test_every_encoding_holds_the_same_samples(
    pack_to: PackTo, packed: Path, tmp_path: Path, encoding: str
) -> None:
    pack_to(tmp_path, encoding=encoding)
    check_packed(str(tmp_path), StoreConfig())
    one, other = PackedData(str(packed)).training("train"), PackedData(str(tmp_path)).training("train")
    assert one.index.key == other.index.key
    for sample in range(len(one.index)):
        for a, b in zip(one.read(sample), other.read(sample), strict=True):
            np.testing.assert_array_equal(a, b)


def test_packing_to_a_bucket_gives_the_bytes_of_packing_to_a_folder(
    pack_to: PackTo, packed: Path, bucket: str, tmp_path: Path
) -> None:
    uri = f"{bucket}/data/phantom"
    pack_to(uri)
    store = open_store(uri)
    on_s3 = {e.key: hashlib.sha256(store.get(e.key)).hexdigest() for e in store.list()}
    assert on_s3 == digests(packed)
    config = StoreConfig(cache_dir=str(tmp_path))
    check_packed(uri, config)
    remote, local = PackedData(uri, config).test(), PackedData(str(packed)).test()
    assert remote.index.key == local.index.key
    for sample in range(len(local.index)):
        for a, b in zip(remote.read(sample), local.read(sample), strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(InputError, match="already holds another data set"):
        pack_to(uri, encoding="webp")
