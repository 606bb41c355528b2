"""Fixtures that several test files share: a real S3 server, started by the first test that asks for it."""

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import hypothesis
import pytest
from fault_proxy import FaultProxy
from swift_server import SwiftServer, install

# Ray's workers let every other process go first (niceness 15): beside other tests they would hardly run, and what waits
# for them would give up.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - as Ray spells it

# A busy machine is no fault of the code: by default Hypothesis fails an example that takes 200 ms.
hypothesis.settings.register_profile("bts-dist", deadline=None)
hypothesis.settings.load_profile("bts-dist")


@dataclass(frozen=True)
class S3Server:
    """A server to test against."""

    endpoint: str
    environment: dict[str, str]
    """What a process needs to use it; the fixture ``bucket`` sets it, also for subprocesses."""
    client: Any
    """A boto3 client, to make buckets and to look behind the scenes."""


@pytest.fixture(scope="session")
def swift() -> Path:
    """The programs of OpenStack Swift, installed once into BTS_TEST_CACHE, or ``~/.cache/bts-dist``."""
    return install(Path(os.environ.get("BTS_TEST_CACHE", Path.home() / ".cache" / "bts-dist")))


@pytest.fixture(scope="session")
def s3(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The server at BTS_TEST_S3_ENDPOINT (with the usual AWS variables), or OpenStack Swift on this machine."""
    endpoint = os.environ.get("BTS_TEST_S3_ENDPOINT")
    if endpoint:
        yield S3Server(endpoint, {"AWS_ENDPOINT_URL": endpoint}, boto3.client("s3", endpoint_url=endpoint))
        return
    programs = request.getfixturevalue("swift")
    with SwiftServer(programs, tmp_path_factory.mktemp("swift") / "server") as server:
        with pytest.MonkeyPatch.context() as patch:
            _set_environment(patch, server.environment)
            client = boto3.client("s3")
        yield S3Server(server.endpoint, server.environment, client)


def _set_environment(patch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    patch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    if "AWS_ACCESS_KEY_ID" in environment:  # then nothing of the developer's own account may join in
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
    for name, value in environment.items():
        patch.setenv(name, value)


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """``s3://name`` of a fresh bucket, with the environment set for it; removed after the test."""
    _set_environment(monkeypatch, s3.environment)
    name = f"bts-test-{uuid.uuid4().hex[:12]}"
    s3.client.create_bucket(Bucket=name)
    yield f"s3://{name}"
    for page in s3.client.get_paginator("list_objects_v2").paginate(Bucket=name):
        for item in page.get("Contents", ()):
            s3.client.delete_object(Bucket=name, Key=item["Key"])
    s3.client.delete_bucket(Bucket=name)


@pytest.fixture
def s3_proxy(bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy that can spoil requests to the server, set in the environment in the server's place."""
    with FaultProxy(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the server, so that ``-m "not s3"`` leaves it out."""
    for item in items:
        if "s3" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.s3)
