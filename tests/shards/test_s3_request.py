"""Which failed requests are sent again, and what the others tell the user."""

import socket
from pathlib import Path

import pytest
from fault_proxy import Answer, Fault, FaultProxy, refusal

from shards.config import StoreConfig
from shards.errors import InputError
from shards.s3 import S3Store
from shards.s3_request import connect
from shards.store import StoreError

CONFIG = StoreConfig(attempts=3, timeout_s=5)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses made so far, in seconds; none is waited for."""
    made: list[float] = []
    monkeypatch.setattr("shards.patience.time.sleep", made.append)
    return made


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> str:
    """An endpoint that nobody listens at, set in the environment."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    return endpoint


@pytest.mark.parametrize(
    "fault",
    [
        Fault("PUT", "answer", answer=refusal(503, "SlowDown"), times=2),
        Fault("PUT", "answer", answer=refusal(500, "InternalError"), times=2),
        Fault("PUT", "answer", answer=refusal(400, "BadDigest"), times=2),
        Fault("PUT", "hang up", times=2),
    ],
    ids=["SlowDown", "InternalError", "BadDigest", "hang up"],
)
def test_what_may_pass_is_sent_again(
    bucket: str, s3_proxy: FaultProxy, pauses: list[float], fault: Fault
) -> None:
    store = S3Store(bucket, CONFIG)
    s3_proxy.faults.append(fault)
    store.put("key", b"data")
    assert [request.method for request in s3_proxy.requests] == ["PUT"] * 3
    assert len(pauses) == 2
    assert store.get("key") == b"data"


@pytest.mark.parametrize(
    ("retry_after", "tries"),
    [
        ("1", 3),
        ("soon", 3),
        ("Thu, 01 Jan 2026 00:00:00 GMT", 3),
        ("3600", 1),
        ("Thu, 01 Jan 2126 00:00:00 GMT", 1),
    ],
)
def test_a_server_is_asked_again_when_it_says_unless_that_is_too_late(
    bucket: str, s3_proxy: FaultProxy, pauses: list[float], retry_after: str, tries: int
) -> None:
    slow = refusal(503, "SlowDown", retry_after=retry_after)
    s3_proxy.faults.append(Fault("PUT", "answer", answer=slow, times=9))
    with pytest.raises(StoreError, match="503 SlowDown"):
        S3Store(bucket, CONFIG).put("key", b"data")
    assert len(s3_proxy.requests) == tries
    assert len(pauses) == tries - 1
    assert all(pause > float(retry_after == "1") for pause in pauses)


@pytest.mark.parametrize(
    ("answer", "error", "words", "sent"),
    [
        (
            refusal(503, "SlowDown"),
            StoreError,
            r"key: PutObject failed \(503 SlowDown: on purpose\), and .* = 3",
            3,
        ),
        (refusal(400, "EntityTooLarge"), StoreError, "400 EntityTooLarge", 1),
        (refusal(400, "ExpiredToken"), InputError, "access denied .*have not expired", 1),
        (refusal(403, "RequestTimeTooSkewed"), InputError, "access denied .*RequestTimeTooSkewed", 1),
        (refusal(400, "InvalidBucketName"), InputError, "not a valid bucket; its name has 3 to 63", 1),
        (refusal(501, "NotImplemented"), InputError, r"does not offer .*conditional writes", 1),
        (refusal(301, "PermanentRedirect"), InputError, "wrong region .*AWS_REGION", 1),
    ],
    ids=[
        "SlowDown",
        "EntityTooLarge",
        "ExpiredToken",
        "TimeTooSkewed",
        "BucketName",
        "NotImplemented",
        "Redirect",
    ],
)
def test_a_refusal_is_explained(
    bucket: str,
    s3_proxy: FaultProxy,
    pauses: list[float],
    answer: Answer,
    error: type[Exception],
    words: str,
    sent: int,
) -> None:
    s3_proxy.faults.append(Fault("PUT", "answer", answer=answer, times=9))
    with pytest.raises(error, match=words):
        S3Store(bucket, CONFIG).put("key", b"data", if_absent=True)
    assert [request.method for request in s3_proxy.requests].count("PUT") == sent


@pytest.mark.parametrize(
    ("style", "url"),
    [("auto", "http://minio.local:9000/bucket/key"), ("virtual", "http://bucket.minio.local:9000/key")],
)
def test_a_server_may_want_the_bucket_in_its_name(
    nowhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, style: str, url: str
) -> None:
    settings = tmp_path / "config"
    settings.write_text(f"[default]\ns3 =\n  addressing_style = {style}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(settings))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio.local:9000")
    client = connect(CONFIG)
    assert client.generate_presigned_url("get_object", {"Bucket": "bucket", "Key": "key"}).startswith(
        f"{url}?"
    )


def test_either_variable_sets_the_region(nowhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.delenv("AWS_REGION", raising=False)
    assert connect(CONFIG).meta.region_name == "eu-west-1"
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    assert connect(CONFIG).meta.region_name == "eu-north-1"


@pytest.mark.parametrize("calculation", ["when_required", "when_supported"])
def test_checksums_that_a_server_does_not_know_can_be_left_out(
    bucket: str, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, calculation: str
) -> None:
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", calculation)
    S3Store(bucket, CONFIG).put("key", b"data")
    sent = s3_proxy.requests[0].headers
    assert sent["Content-MD5"] == "jXd/OF09/siBXSD3SWAm3A=="
    assert ("x-amz-checksum-crc32" in sent) == (calculation == "when_supported")


def test_an_unreachable_endpoint_is_named(nowhere: str, pauses: list[float]) -> None:
    with pytest.raises(InputError, match=f"s3://bucket/key: cannot reach {nowhere}; .*AWS_ENDPOINT_URL"):
        S3Store("s3://bucket", CONFIG).get("key")
    assert len(pauses) == 2


def test_a_silent_endpoint_is_named(nowhere: str) -> None:
    silent = socket.create_server(("127.0.0.1", int(nowhere.rpartition(":")[2])))
    with silent, pytest.raises(StoreError, match=f"no proper answer from {nowhere}"):
        S3Store("s3://bucket", StoreConfig(attempts=1, timeout_s=0.2)).list()


def test_settings_that_make_no_client_are_explained(nowhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    with pytest.raises(InputError, match="Invalid endpoint: localhost:9000; check AWS_ENDPOINT_URL"):
        S3Store("s3://bucket", CONFIG).list()
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(InputError, match=r"nobody.*AWS_PROFILE"):
        S3Store("s3://bucket", CONFIG).list()


def test_missing_credentials_are_explained(nowhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    said = "Unable to locate credentials; set AWS_ACCESS_KEY_ID.*or give the machine a role"
    with pytest.raises(InputError, match=said):
        S3Store("s3://bucket", CONFIG).list()
