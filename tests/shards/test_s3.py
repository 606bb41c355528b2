"""S3Store on a real server: paging, multipart uploads, broken downloads, lost answers."""

import random
import threading
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

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
    monkeypatch.setattr("shards.patience.time.sleep", lambda _: None)


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


@pytest.mark.parametrize("kind", [Path, bytes, memoryview])
def test_what_is_large_goes_in_parts(
    store: S3Store, s3_proxy: FaultProxy, volume: Path, client: Any, kind: type
) -> None:
    data = volume.read_bytes()
    store.put("volume", volume if kind is Path else kind(data))
    assert [request.method for request in s3_proxy.requests] == ["POST", "PUT", "PUT", "PUT", "POST", "HEAD"]
    assert all(request.headers["Content-MD5"] for request in s3_proxy.requests if request.method == "PUT")
    assert store.list() == [Entry("volume", 12 * MIB)]
    assert store.get("volume") == data
    assert store.get("volume", 5 * MIB - 2, 4) == data[5 * MIB - 2 : 5 * MIB + 2]
    assert pending_uploads(client, store) == []


def test_parts_go_side_by_side_as_many_as_told(
    bucket: str, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = S3Store(bucket, CONFIG.model_copy(update={"upload_threads": 2}))
    together = threading.Barrier(2, timeout=60)
    sending: set[str] = set()
    most: list[int] = []

    def read(data: Path, start: int, size: int) -> bytes:
        sending.add(threading.current_thread().name)
        most.append(len(sending))
        if start < 2 * size:
            together.wait()
        return volume.read_bytes()[start : start + size]

    monkeypatch.setattr("shards.s3._read", read)
    store.put("volume", volume)
    assert len(most) == 3
    assert max(most) == 2
    monkeypatch.undo()


def test_no_upload_has_more_parts_than_s3_takes(
    store: S3Store, s3_proxy: FaultProxy, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.s3._MOST_PARTS", 2)
    store.put("volume", volume)
    parts = [request.headers["Content-Length"] for request in s3_proxy.requests if request.method == "PUT"]
    assert parts == [str(6 * MIB)] * 2
    assert store.get("volume") == volume.read_bytes()


def test_a_part_that_fails_is_sent_again_alone(store: S3Store, s3_proxy: FaultProxy, volume: Path) -> None:
    s3_proxy.faults.append(Fault("PUT", "answer", answer=refusal(503, "SlowDown"), times=2, skip=1))
    store.put("volume", volume)
    sent = Counter(
        parse_qs(urlsplit(request.path).query)["partNumber"][0]
        for request in s3_proxy.requests
        if request.method == "PUT"
    )
    assert set(sent) == {"1", "2", "3"}
    assert sent.total() == 5
    assert store.get("volume") == volume.read_bytes()


def test_an_upload_whose_last_answer_is_lost_is_complete(
    store: S3Store, s3_proxy: FaultProxy, volume: Path
) -> None:
    s3_proxy.faults.append(Fault("POST", "hang up", skip=1))
    store.put("volume", volume)
    assert store.get("volume") == volume.read_bytes()


def test_what_is_too_large_for_a_condition_is_told(store: S3Store, tmp_path: Path) -> None:
    file = tmp_path / "huge"
    with file.open("wb") as opened:
        opened.truncate(5 * 1024 * MIB + 1)  # takes no space
    with pytest.raises(InputError, match="data/huge: 5368709121 bytes; no more than 5 GiB"):
        store.put("huge", file, if_absent=True)


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


# Each stall is waited for; less, and a busy machine would be taken for one.
@pytest.mark.parametrize(("kind", "timeout_s"), [("cut", 5.0), ("stall", 2.0)])
def test_a_broken_download_goes_on_where_it_broke(
    bucket: str, s3_proxy: FaultProxy, volume: Path, kind: str, timeout_s: float
) -> None:
    store = S3Store(bucket, CONFIG.model_copy(update={"timeout_s": timeout_s}))
    store.put("volume", volume)
    data = volume.read_bytes()
    s3_proxy.requests.clear()
    s3_proxy.faults += [Fault("GET", kind, after=3 * MIB), Fault("GET", kind, after=4 * MIB)]
    assert store.get("volume") == data
    assert [request.range for request in s3_proxy.requests] == [
        None,
        f"bytes={3 * MIB}-",
        f"bytes={7 * MIB}-",
    ]
    assert [bool(request.headers["If-Match"]) for request in s3_proxy.requests] == [False, True, True]
    s3_proxy.faults.append(Fault("GET", kind, after=100))
    assert store.get("volume", MIB, 1000) == data[MIB : MIB + 1000]


def test_a_range_that_never_comes_names_the_object(store: S3Store, s3_proxy: FaultProxy) -> None:
    store.put("shard.tar", b"x" * 1000)
    s3_proxy.faults.append(Fault("GET", "bad spot", after=110, times=99))
    with pytest.raises(StoreError, match=r"data/shard\.tar: broke off with 10 of 200 bytes good, and .* = 3"):
        store.get("shard.tar", 100, 200)
    assert store.get("shard.tar", 0, 100) == b"x" * 100


def test_versions_are_never_mixed(
    store: S3Store, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.patience.time.sleep", lambda _: store.put("shard.tar", b"new" * 1000))
    for ignoring in ([], [Fault("GET", "strip", header="If-Match")]):  # as servers do that do not know it
        store.put("shard.tar", b"old" * 1000)
        s3_proxy.faults += [Fault("GET", "cut", after=10), *ignoring]
        with pytest.raises(StoreError, match=r"shard\.tar: was replaced while it was being read; see that"):
            store.get("shard.tar")


def test_a_body_that_fails_its_checksum_is_fetched_again(
    store: S3Store, s3_proxy: FaultProxy, client: Any
) -> None:
    store.put("shard.tar", b"true")
    etag = client.head_object(Bucket=store.bucket, Key="data/shard.tar")["ETag"]
    wrong = Answer(200, b"lies", {"ETag": etag, "x-amz-checksum-crc32": "AAAAAA=="})
    s3_proxy.faults.append(Fault("GET", "answer", answer=wrong))
    assert store.get("shard.tar") == b"true"
    s3_proxy.faults.append(Fault("GET", "answer", answer=wrong, times=3))
    with pytest.raises(StoreError, match=r"shard\.tar: arrived damaged with 0 of 4 bytes good, and .* = 3"):
        store.get("shard.tar")


def test_a_web_page_is_no_object(store: S3Store, s3_proxy: FaultProxy) -> None:
    s3_proxy.faults.append(Fault("GET", "answer", answer=Answer(200, b"<html><body>Welcome</body></html>")))
    with pytest.raises(InputError, match="data/key: the answer is no object; is AWS_ENDPOINT_URL an S3"):
        store.get("key")


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


def test_conditional_writes_are_tried_out(store: S3Store, s3_proxy: FaultProxy) -> None:
    store.check_conditional_writes()
    s3_proxy.faults += [Fault("PUT", "hang up"), Fault("PUT", "hang up", skip=1)]
    store.check_conditional_writes()
    assert store.list() == []


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault("PUT", "strip", header="If-None-Match", times=9), "overwrites an object although"),
        (
            Fault("PUT", "answer", answer=refusal(501, "NotImplemented"), times=9),
            "does not offer what PutObject",
        ),
    ],
    ids=["ignored", "refused"],
)
def test_a_server_without_conditional_writes_is_named(
    store: S3Store, s3_proxy: FaultProxy, fault: Fault, said: str
) -> None:
    s3_proxy.faults.append(fault)
    with pytest.raises(InputError, match=rf"/data.*: {s3_proxy.endpoint} {said}.*use a server with"):
        store.check_conditional_writes()
    assert store.list() == []


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
