"""Which failed requests are sent again, and what the others tell the user."""

import socket

import pytest
from fault_proxy import Answer, Fault, FaultProxy, refusal

from shards.config import StoreConfig
from shards.errors import InputError
from shards.s3 import S3Store
from shards.s3_request import pause
from shards.store import StoreError

CONFIG = StoreConfig(attempts=3, timeout_s=5)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses made so far, in seconds; none is waited for."""
    made: list[float] = []
    monkeypatch.setattr("shards.s3_request.time.sleep", made.append)
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


def test_pauses_double_and_differ(pauses: list[float]) -> None:
    for attempt in range(10):
        pause(attempt)
    ceilings = [0.5, 1, 2, 4, 8, 16, 20, 20, 20]
    assert len(pauses) == len(ceilings)
    assert all(top / 2 <= made <= top for made, top in zip(pauses, ceilings, strict=True))
    assert len(set(pauses)) == len(pauses)


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
    ("answer", "error", "words", "sent"),
    [
        (refusal(503, "SlowDown"), StoreError, r"key: PutObject failed \(503 SlowDown: on purpose\)", 3),
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
    with pytest.raises(InputError, match="Unable to locate credentials; set AWS_ACCESS_KEY_ID"):
        S3Store("s3://bucket", CONFIG).list()
