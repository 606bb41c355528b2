"""S3Store on a real server: paging, multipart uploads, broken downloads, lost answers."""

import random
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import Answer, Fault, FaultProxy, refusal

from shards.config import StoreConfig
from shards.errors import InputError
from shards.s3 import S3Store
from shards.store import AlreadyExists, Entry, MissingObject, StoreError

pytestmark = pytest.mark.s3

MIB = 1 << 20
CONFIG = StoreConfig(attempts=3, timeout_s=5, part_mib=5)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.s3_request.time.sleep", lambda _: None)


@pytest.fixture
def store(bucket: str) -> S3Store:
    return S3Store(f"{bucket}/data", CONFIG)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """12 MiB of noise: three parts."""
    file = tmp_path / "volume.bin"
    file.write_bytes(random.Random(0).randbytes(12 * MIB))
    return file


@pytest.fixture
def client(s3: Any) -> Any:
    return s3.client


def pending_uploads(client: Any, store: S3Store) -> list[str]:
    listing = client.list_multipart_uploads(Bucket=store.bucket)
    return [upload["Key"] for upload in listing.get("Uploads", ())]


def test_a_listing_has_all_pages(bucket: str) -> None:
    store = S3Store(f"{bucket}/data", CONFIG, page_keys=2)
    keys = [f"shards/train-{number:06d}.tar" for number in range(5)]
    for key in keys:
        store.put(key, b"tar")
    assert store.list() == [Entry(key, 3) for key in keys]
    assert store.list("shards/train-000004") == [Entry(keys[4], 3)]


def test_a_listing_knows_its_prefix_only(bucket: str, store: S3Store, client: Any) -> None:
    store.put("a", b"1")
    S3Store(f"{bucket}/database", CONFIG).put("b", b"2")
    client.put_object(Bucket=store.bucket, Key="data/folder/", Body=b"")  # as consoles mark folders
    assert store.list() == [Entry("a", 1)]
    assert [entry.key for entry in S3Store(bucket, CONFIG).list()] == ["data/a", "database/b"]


def test_a_web_page_is_no_listing(store: S3Store, s3_proxy: FaultProxy) -> None:
    s3_proxy.faults.append(Fault("GET", "answer", answer=Answer(200, b"<html><body>Welcome</body></html>")))
    with pytest.raises(InputError, match="no listing; is AWS_ENDPOINT_URL an S3 server"):
        store.list()


def test_a_large_file_goes_in_parts(store: S3Store, s3_proxy: FaultProxy, volume: Path, client: Any) -> None:
    store.put("volume", volume)
    assert [request.method for request in s3_proxy.requests] == ["POST", "PUT", "PUT", "PUT", "POST", "HEAD"]
    assert store.list() == [Entry("volume", 12 * MIB)]
    assert store.get("volume") == volume.read_bytes()
    assert store.get("volume", 5 * MIB - 2, 4) == volume.read_bytes()[5 * MIB - 2 : 5 * MIB + 2]
    assert pending_uploads(client, store) == []


def test_a_large_file_never_replaces_another_unasked(store: S3Store, volume: Path) -> None:
    store.put("volume", b"first")
    with pytest.raises(AlreadyExists):
        store.put("volume", volume, if_absent=True)
    assert store.get("volume") == b"first"
    store.put("other", volume, if_absent=True)
    assert store.get("other") == volume.read_bytes()


def test_a_failed_upload_is_taken_back(
    store: S3Store, s3_proxy: FaultProxy, volume: Path, client: Any
) -> None:
    s3_proxy.faults.append(Fault("PUT", "answer", answer=refusal(403, "AccessDenied"), skip=1))
    with pytest.raises(InputError, match="access denied"):
        store.put("volume", volume)
    assert store.list() == []
    assert pending_uploads(client, store) == []


def test_an_upload_of_the_wrong_size_is_an_error(store: S3Store, s3_proxy: FaultProxy, volume: Path) -> None:
    s3_proxy.faults.append(Fault("HEAD", "answer", answer=Answer(200, headers={"Content-Length": "7"})))
    with pytest.raises(StoreError, match="12582912 bytes were sent and 7 arrived"):
        store.put("volume", volume)


def test_what_arrives_damaged_is_sent_again(store: S3Store, s3_proxy: FaultProxy, volume: Path) -> None:
    s3_proxy.faults.append(Fault("PUT", "damage"))
    store.put("small", b"bytes")
    s3_proxy.faults.append(Fault("PUT", "damage", skip=1))
    store.put("volume", volume)
    assert store.get("small") == b"bytes"
    assert store.get("volume") == volume.read_bytes()


@pytest.mark.parametrize("kind", ["cut", "stall"])
def test_a_broken_download_goes_on_where_it_broke(
    bucket: str, s3_proxy: FaultProxy, volume: Path, kind: str
) -> None:
    store = S3Store(bucket, CONFIG.model_copy(update={"timeout_s": 0.5}))
    store.put("volume", volume)
    data = volume.read_bytes()
    s3_proxy.requests.clear()
    s3_proxy.faults += [Fault("GET", kind, after=3 * MIB), Fault("GET", kind, after=4 * MIB)]
    assert store.get("volume") == data
    assert [request.range for request in s3_proxy.requests] == [
        None,
        f"bytes={3 * MIB}-{12 * MIB - 1}",
        f"bytes={7 * MIB}-{12 * MIB - 1}",
    ]
    s3_proxy.faults.append(Fault("GET", kind, after=100))
    assert store.get("volume", MIB, 1000) == data[MIB : MIB + 1000]


def test_a_download_that_never_ends_names_the_object(store: S3Store, s3_proxy: FaultProxy) -> None:
    store.put("shard.tar", b"x" * 1000)
    s3_proxy.faults.append(Fault("GET", "cut", after=10, times=3))
    with pytest.raises(
        StoreError, match=r"data/shard\.tar: broke off in each of 3 attempts.* after 30 bytes"
    ):
        store.get("shard.tar")


def test_versions_are_never_mixed(
    store: S3Store, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("shard.tar", b"old" * 1000)
    s3_proxy.faults.append(Fault("GET", "cut", after=10))
    monkeypatch.setattr("shards.s3.pause", lambda attempt: attempt and store.put("shard.tar", b"new" * 1000))
    with pytest.raises(StoreError, match=r"shard\.tar: was replaced"):
        store.get("shard.tar")


def test_a_body_that_fails_its_checksum_is_fetched_again(
    store: S3Store, s3_proxy: FaultProxy, client: Any
) -> None:
    store.put("shard.tar", b"true")
    etag = client.head_object(Bucket=store.bucket, Key="data/shard.tar")["ETag"]
    wrong = Answer(200, b"lies", {"ETag": etag, "x-amz-checksum-crc32": "AAAAAA=="})
    s3_proxy.faults.append(Fault("GET", "answer", answer=wrong))
    assert store.get("shard.tar") == b"true"


def test_a_server_without_ranges_is_an_error(store: S3Store, s3_proxy: FaultProxy) -> None:
    whole = Answer(200, b"0123456789", {"ETag": '"0"'})
    s3_proxy.faults.append(Fault("GET", "answer", answer=whole))
    with pytest.raises(StoreError, match="asked for a part"):
        store.get("digits", 3, 4)


def test_a_lost_answer_is_no_lost_race(store: S3Store, s3_proxy: FaultProxy) -> None:
    s3_proxy.faults.append(Fault("PUT", "hang up"))
    store.put("manifest.json", b"mine", if_absent=True)
    assert [request.method for request in s3_proxy.requests] == ["PUT", "PUT", "GET"]
    s3_proxy.faults.append(Fault("PUT", "hang up"))
    with pytest.raises(AlreadyExists):
        store.put("manifest.json", b"theirs", if_absent=True)
    assert store.get("manifest.json") == b"mine"


def test_a_wrong_secret_is_told_at_once(
    store: S3Store, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, volume: Path
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    for use in (
        store.list,
        lambda: store.get("key"),
        lambda: store.get("key", 0, 0),
        lambda: store.put("key", b""),
        lambda: store.put("key", volume),
        lambda: store.delete("key"),
    ):
        s3_proxy.requests.clear()
        with pytest.raises(InputError, match=r"access denied \(403.*AWS_SECRET_ACCESS_KEY"):
            use()
        assert len(s3_proxy.requests) == 1


def test_a_missing_bucket_is_named(bucket: str) -> None:
    store = S3Store(f"{bucket}-not/data", CONFIG)
    for use in (store.list, lambda: store.get("key"), lambda: store.put("key", b"")):
        with pytest.raises(InputError, match=f"{bucket}-not/data.*there is no such bucket"):
            use()


def test_a_bad_bucket_name_is_explained(bucket: str) -> None:
    with pytest.raises(InputError, match="s3://no good/key: not a valid bucket; its name has 3 to 63"):
        S3Store("s3://no good", CONFIG).put("key", b"")


def test_a_deleted_object_is_missing(store: S3Store) -> None:
    store.put("key", b"")
    store.delete("key")
    with pytest.raises(MissingObject):
        store.get("key", 5, 5)
