"""Objects of known content: what is fetched again, what is told at once, and what comes of a broken transfer."""

import hashlib
import random
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from fault_proxy import Answer, Fault, FaultProxy, refusal

from shards.config import StoreConfig
from shards.errors import InputError
from shards.fetch import fetch
from shards.s3 import S3Store
from shards.store import LocalStore, MissingObject, StoreError

MIB = 1 << 20
KEY = "shards/train-000000.tar"
SHARD = random.Random(0).randbytes(2 * MIB)
CONFIG = StoreConfig(attempts=3, timeout_s=5)


class Bodies:
    """A store whose every ``get`` brings the next of some bodies; ``None`` is a missing object."""

    uri = "s3://bucket/data"

    def __init__(self, *bodies: bytes | None) -> None:
        self.left = list(bodies)

    def get(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        body = self.left.pop(0)
        if body is None:
            raise MissingObject(key, self.uri)
        return body


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def fetch_shard(store: object, config: StoreConfig = CONFIG, data: bytes = SHARD) -> bytes:
    return fetch(store, KEY, sha256=digest(data), size=len(data), config=config)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses made so far, in seconds; none is waited for."""
    made: list[float] = []
    monkeypatch.setattr("shards.patience.time.sleep", made.append)
    return made


@pytest.fixture
def store(bucket: str, s3_proxy: FaultProxy) -> S3Store:
    """A store that holds the shard."""
    store = S3Store(f"{bucket}/data", CONFIG)
    store.put(KEY, SHARD)
    s3_proxy.requests.clear()
    return store


def test_the_right_bytes_come_at_the_first_try(pauses: list[float]) -> None:
    assert fetch_shard(Bodies(SHARD)) == SHARD
    assert pauses == []


def test_a_missing_object_is_told_at_once() -> None:
    store = Bodies(None, SHARD)
    with pytest.raises(InputError, match=f"^s3://bucket/data/{KEY} is missing; copy or pack it again$"):
        fetch_shard(store)
    assert len(store.left) == 1


def test_what_was_damaged_on_the_way_is_fetched_again(pauses: list[float]) -> None:
    assert fetch_shard(Bodies(b"x" + SHARD[1:], SHARD[:-1], SHARD)) == SHARD
    assert len(pauses) == 2
    assert 0 < pauses[0] < pauses[1]


def test_damage_at_every_try_names_both_contents() -> None:
    store = Bodies(*(SHARD[:-n] for n in range(1, 9)))
    last = SHARD[:-3]
    with pytest.raises(
        InputError,
        match=rf"^s3://bucket/data/{KEY}: sha256 is {digest(last)[:12]}…, the manifest says {digest(SHARD)[:12]}… "
        rf"\({len(SHARD)} bytes expected, {len(last)} bytes found\); the shard was changed or damaged: "
        "copy or pack it again",
    ):
        fetch_shard(store)
    assert len(store.left) == 5


def test_the_same_wrong_bytes_twice_are_what_is_stored() -> None:
    store = Bodies(b"a", b"b", b"a", SHARD)
    with pytest.raises(InputError, match="changed or damaged"):
        fetch_shard(store, CONFIG.model_copy(update={"attempts": 9}))
    assert store.left == [SHARD]


def test_a_size_that_is_not_the_packed_one_is_refused() -> None:
    with pytest.raises(InputError, match=rf"\({len(SHARD) + 1} bytes expected, {len(SHARD)} bytes found\)"):
        fetch(Bodies(SHARD, SHARD), KEY, sha256=digest(SHARD), size=len(SHARD) + 1, config=CONFIG)  # type: ignore[arg-type]


def test_damage_is_fetched_again_until_the_deadline_only() -> None:
    store = Bodies(b"a", SHARD)
    with pytest.raises(InputError, match="changed or damaged"):
        fetch_shard(store, CONFIG.model_copy(update={"deadline_s": 0.1}))
    assert store.left == [SHARD]


def test_a_folder_is_read_once(tmp_path: Path, pauses: list[float]) -> None:
    store = LocalStore(str(tmp_path), tmp_path)
    store.put(KEY, SHARD)
    assert fetch_shard(store) == SHARD
    with pytest.raises(InputError, match=f"{tmp_path}/{KEY}: sha256 is .*changed or damaged"):
        fetch_shard(store, data=b"other")
    assert pauses == []


@pytest.mark.parametrize(
    "faults",
    [
        [Fault("GET", "cut", after=MIB), Fault("GET", "cut", after=100)],
        [Fault("GET", "reset", after=MIB), Fault("GET", "reset", after=100)],
        [Fault("GET", "hang up", times=2)],
        [Fault("GET", "answer", answer=refusal(503, "SlowDown", retry_after="1"), times=2)],
        [Fault("GET", "answer", answer=Answer(502, b"<html>Bad gateway</html>"), times=2)],
        [Fault("GET", "answer", answer=refusal(429, "TooManyRequests")), Fault("GET", "cut", after=0)],
        [Fault("GET", "damage answer", after=5), Fault("GET", "damage answer", after=MIB)],
    ],
    ids=["cut", "reset", "hang up", "SlowDown", "gateway", "throttled and cut", "damage"],
)
def test_the_shard_comes_through(store: S3Store, s3_proxy: FaultProxy, faults: list[Fault]) -> None:
    s3_proxy.faults += [Fault(**vars(fault)) for fault in faults]
    assert fetch_shard(store) == SHARD
    assert len(s3_proxy.requests) == 3


def test_the_shard_comes_through_a_stall(store: S3Store, s3_proxy: FaultProxy) -> None:
    impatient = S3Store(store.uri, CONFIG.model_copy(update={"timeout_s": 1}))
    s3_proxy.faults.append(Fault("GET", "stall", after=MIB))
    assert fetch_shard(impatient) == SHARD
    assert [request.range for request in s3_proxy.requests] == [None, f"bytes={MIB}-"]


def test_many_breaks_are_no_fault_while_it_gets_on(store: S3Store, s3_proxy: FaultProxy) -> None:
    s3_proxy.faults.append(Fault("GET", "cut", after=MIB // 4, times=7))
    assert fetch_shard(store) == SHARD
    assert [request.range for request in s3_proxy.requests] == [
        None,
        *(f"bytes={n * MIB // 4}-" for n in range(1, 8)),
    ]


def test_a_place_that_never_comes_is_named(store: S3Store, s3_proxy: FaultProxy) -> None:
    s3_proxy.faults.append(Fault("GET", "bad spot", after=MIB, times=99))
    with pytest.raises(
        StoreError,
        match=rf"/data/{KEY}: broke off with {MIB} of {2 * MIB} bytes good, and store.attempts = 3 ",
    ):
        fetch_shard(store)
    assert len(s3_proxy.requests) == 3


def test_a_deadline_names_the_shard(store: S3Store, s3_proxy: FaultProxy) -> None:
    hasty = S3Store(store.uri, CONFIG.model_copy(update={"deadline_s": 0.6}))
    s3_proxy.faults.append(Fault("GET", "cut", after=10, times=10**6))
    with pytest.raises(StoreError, match=rf"/data/{KEY}: broke off with .* store.deadline_s = 0.6 leaves no"):
        fetch_shard(hasty)


def test_a_body_that_comes_too_slowly_is_given_up(
    store: S3Store, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = count()
    monkeypatch.setattr("shards.patience.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    hasty = S3Store(store.uri, CONFIG.model_copy(update={"deadline_s": 5}))
    with pytest.raises(
        StoreError, match=rf"{KEY}: broke off with \d+ of {2 * MIB} bytes good, and store.deadline_s"
    ):
        hasty.get(KEY)
    assert len(s3_proxy.requests) == 1


def test_a_pause_the_server_asks_for_is_made(
    store: S3Store, s3_proxy: FaultProxy, pauses: list[float]
) -> None:
    slow = refusal(503, "SlowDown", retry_after="17")
    s3_proxy.faults.append(Fault("GET", "answer", answer=slow, times=2))
    assert fetch_shard(store) == SHARD
    assert all(17 < pause < 18 for pause in pauses)
    s3_proxy.faults.append(Fault("GET", "answer", answer=refusal(503, "SlowDown", retry_after="9999")))
    with pytest.raises(StoreError, match=rf"{KEY}: GetObject failed .503 SlowDown.*store.deadline_s = 600"):
        fetch_shard(store)
    assert len(pauses) == 2


@pytest.mark.parametrize(
    "answer", [refusal(403, "AccessDenied"), refusal(400, "ExpiredToken"), refusal(403, "ExpiredToken")]
)
def test_a_refusal_is_told_at_once(store: S3Store, s3_proxy: FaultProxy, answer: Answer) -> None:
    s3_proxy.faults += [Fault("GET", "cut", after=MIB), Fault("GET", "answer", answer=answer, times=9)]
    with pytest.raises(InputError, match=rf"/data/{KEY}: access denied .*have not expired"):
        fetch_shard(store)
    assert len(s3_proxy.requests) == 2


def test_a_shard_replaced_in_the_store_is_found_out(store: S3Store, s3_proxy: FaultProxy) -> None:
    store.put(KEY, SHARD[::-1])
    s3_proxy.requests.clear()
    with pytest.raises(InputError, match="changed or damaged"):
        fetch_shard(store)
    assert len(s3_proxy.requests) == 2
