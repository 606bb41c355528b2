"""What ``bts doctor`` says of the stores: reachable, writable, honest about conditions, and how fast."""

import os
import time
import urllib.error
import urllib.request
import uuid
from contextlib import suppress
from email.utils import parsedate_to_datetime

from botocore.exceptions import BotoCoreError
from botocore.session import Session

from bts_dist.config import Config
from cluster.doctor_machine import in_the_way, nearest
from cluster.finding import Finding, refused
from shards.config import StoreConfig
from shards.errors import InputError, UnreachableError
from shards.location import is_local
from shards.manifest import MANIFEST
from shards.s3_request import ROLE, connect
from shards.store import LocalStore, MissingObject, ObjectStore, StoreError, open_store

_SOURCES = {
    "env": "the environment",
    "shared-credentials-file": "the credentials file",
    "iam-role": "the machine's role",
}
"""What botocore calls where it found them, in words."""

PROBE_BYTES = 8 << 20
TIMEOUT_S = 5.0

SKEW_S = 60.0
REFUSED_SKEW_S = 15 * 60.0
"""From here on S3 refuses signatures (Amazon's RequestTimeTooSkewed)."""


def stores(config: Config) -> list[Finding]:
    """The location of the data set and that of the runs.  What is written there is removed again."""
    return [
        *_store("data.shards", config.data.shards, _impatient(config), needed=False),
        *_store("run.dir", config.run.dir, _impatient(config), needed=True),
    ]


def source(config: Config) -> list[Finding]:
    """Whether the raw files are there, where none have been packed."""
    uri, patient = config.data.source, _impatient(config)
    try:
        if _has_manifest(open_store(config.data.shards, patient)):
            return []
    except (InputError, StoreError):
        return []  # the line of data.shards says so
    try:
        raw = open_store(uri, patient)
        if isinstance(raw, LocalStore) and not raw.root.exists():
            remedy = "set data.source to the raw files, or data.shards to a packed data set"
            return [Finding("data.source", "warning", f"{uri} is not there, and nothing is packed", remedy)]
        _latency(raw)
    except (InputError, StoreError) as error:
        return [refused("data.source", error, "warning")]
    return [Finding("data.source", "ok", f"{uri} can be reached; `bts verify` tells what is in it")]


def _has_manifest(store: ObjectStore) -> bool:
    """A byte of it is enough.  Raises ``InputError`` where the store cannot be read."""
    try:
        store.get(MANIFEST, 0, 1)
    except MissingObject:
        return False
    return True


def _impatient(config: Config) -> StoreConfig:
    return config.store.model_copy(update={"attempts": 2, "deadline_s": 30.0, "timeout_s": TIMEOUT_S})


def _store(key: str, uri: str, config: StoreConfig, needed: bool) -> list[Finding]:
    """``needed`` tells whether it has to be written in any case; a data set that is only read does not."""
    try:
        store = _there(open_store(uri, config))
        latency = _latency(store)
    except (InputError, StoreError) as error:
        return [refused(key, error)]
    try:
        put, get = _carry(store)
        store.check_conditional_writes()
    except (InputError, StoreError, MissingObject) as error:
        if needed or isinstance(error, UnreachableError):
            return [refused(key, error)]
        return [refused(f"{key}, to pack", error, "warning")]
    return [
        Finding(
            key,
            "ok",
            f"{uri}: written at {put / 1e6:.0f} MB/s, read back at {get / 1e6:.0f} MB/s, {latency * 1e3:.0f} ms a "
            "request; conditional writes hold",
        )
    ]


def _there(store: ObjectStore) -> ObjectStore:
    """A folder that is not there yet is made in the nearest that is: nothing is to be left behind.

    Raises:
        InputError: a file is in the way.
    """
    if not isinstance(store, LocalStore):
        return store
    if file := in_the_way(store.root):
        raise InputError(f"{store.uri}: {file} is a file; move it, or choose another folder")
    folder = nearest(store.root)
    return LocalStore(str(folder), folder)


def _latency(store: ObjectStore) -> float:
    """Seconds of a request that has nothing to carry.

    Raises:
        InputError: the store cannot be read.
    """
    began = time.perf_counter()
    with suppress(MissingObject):
        store.get(f"doctor-{uuid.uuid4().hex}")
    return time.perf_counter() - began


def _carry(store: ObjectStore) -> tuple[float, float]:
    """Bytes a second of writing an object and of reading it back.

    Raises:
        InputError: the store refuses, or gives other bytes back.
    """
    key, data = f"doctor-{uuid.uuid4().hex}", os.urandom(PROBE_BYTES)
    try:
        began = time.perf_counter()
        store.put(key, data)
        written = time.perf_counter()
        found = store.get(key)
        read = time.perf_counter()
    finally:
        store.delete(key)
    if found != data:
        raise InputError(f"{store.uri}: gives other bytes back than were written; look after the server")
    return len(data) / (written - began), len(data) / (read - written)


def uses_s3(config: Config) -> bool:
    places = (config.data.source, config.data.shards, config.run.dir)
    return any(place.startswith("s3://") for place in places)


def credentials(config: Config) -> list[Finding]:
    """Where the S3 credentials come from; never what they are."""
    if not uses_s3(config):
        return [Finding("credentials", "ok", "none needed: no location is on S3")]
    remedy = (
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, on every machine that runs workers, "
        f"or {ROLE}"
    )
    try:
        found = Session().get_credentials()
        method = None if found is None else found.method
    except BotoCoreError as error:
        return [Finding("credentials", "error", str(error), remedy)]
    if method is None:
        return [Finding("credentials", "error", "none found for S3", remedy)]
    return [Finding("credentials", "ok", f"from {_SOURCES.get(method, method)}")]


def clock(config: Config) -> list[Finding]:
    """This machine's clock against the S3 server's: requests signed at another time are refused."""
    if not uses_s3(config):
        return [Finding("clock", "ok", f"{time.strftime('%F %T %Z')}; no S3 server to compare it with")]
    try:
        endpoint = connect(config.store).meta.endpoint_url
        date = _date(endpoint)
    except (InputError, OSError) as error:
        return [refused("clock", error, "warning")]
    if date is None:
        return [Finding("clock", "warning", f"{endpoint} tells no time", "see that it is an S3 server")]
    skew = time.time() - date
    found = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} {endpoint}"
    if abs(skew) <= SKEW_S:
        return [Finding("clock", "ok", found)]
    remedy = "set the clock by NTP (timedatectl set-ntp true); from 15 minutes on S3 refuses signatures"
    return [Finding("clock", "error" if abs(skew) > REFUSED_SKEW_S else "warning", found, remedy)]


def _date(endpoint: str) -> float | None:
    """Unix time in seconds in the server's answer, whatever it answers."""
    try:
        with urllib.request.urlopen(
            urllib.request.Request(endpoint, method="HEAD"), timeout=TIMEOUT_S
        ) as reply:
            text = reply.headers.get("Date")
    except urllib.error.HTTPError as error:
        text = error.headers.get("Date")
    return None if text is None else parsedate_to_datetime(text).timestamp()


def shared_places(config: Config) -> list[Finding]:
    """Local folders in a joined cluster: right on a shared file system, and only there."""
    places = {"data.shards": config.data.shards, "run.dir": config.run.dir}
    local = [f"{key}={place}" for key, place in places.items() if is_local(place)]
    if config.cluster.address is None or not local:
        return []
    remedy = "see that every node has it under this name (a shared file system), or use s3://"
    return [
        Finding("locations", "warning", f"{', '.join(local)}: folders, and a cluster of machines", remedy)
    ]
