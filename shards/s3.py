"""``ObjectStore`` on S3, through botocore.  Endpoint, region and credentials: the usual AWS environment."""

import os
import re
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from hashlib import md5
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, FlexibleChecksumError
from urllib3.exceptions import HTTPError

from shards.config import StoreConfig
from shards.errors import InputError
from shards.s3_request import BeyondEndError, PreconditionError, connect, pause, request
from shards.store import AlreadyExists, Entry, MissingObject, StoreError, check_key, join_uri


@dataclass(frozen=True)
class S3Store:
    """Objects in a bucket, below a prefix.

    ``if_absent`` is as atomic as the server's ``If-None-Match: *``: AWS and Ceph let one writer win; of
    several that race, OpenStack Swift may let more than one through.  It always goes as one request of at
    most 5 GiB, since Ceph 18 disregards the condition at the end of a multipart upload.
    """

    uri: str
    config: StoreConfig
    page_keys: int = 1000
    """Keys in one page of a listing."""
    _clients: dict[int, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not re.match("s3://[^/]", self.uri):
            raise InputError(f"{self.uri}: names no bucket; write s3://bucket/prefix")

    def __reduce__(self) -> tuple[Any, ...]:
        return S3Store, (self.uri, self.config, self.page_keys)

    @property
    def bucket(self) -> str:
        return self.uri.removeprefix("s3://").partition("/")[0]

    @property
    def prefix(self) -> str:
        """What stands before each key in the bucket: nothing, or something that ends in a slash."""
        inner = self.uri.removeprefix("s3://").partition("/")[2].strip("/")
        return f"{inner}/" if inner else ""

    def get(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        check_key(key)
        if size == 0:
            self._size(key)
            return b""
        try:
            return self._download(key, start, size)
        except BeyondEndError:
            return b""
        except PreconditionError as error:
            raise StoreError(f"{join_uri(self.uri, key)}: was replaced while it was being read") from error

    def put(self, key: str, data: bytes | Path, *, if_absent: bool = False) -> None:
        check_key(key)
        if not if_absent and isinstance(data, Path) and data.stat().st_size > self._part_bytes:
            self._upload_parts(key, data)
            return
        body = data.read_bytes() if isinstance(data, Path) else data
        condition = {"IfNoneMatch": "*"} if if_absent else {}
        try:
            self._call("put_object", key, Body=body, ContentMD5=_md5(body), **condition)
        except PreconditionError as error:
            if error.resent and self.get(key) == body:
                return  # the first try got through and only its answer was lost
            raise AlreadyExists(key, self.uri) from error

    def list(self, prefix: str = "") -> list[Entry]:
        entries: list[Entry] = []
        query: dict[str, Any] = {"Prefix": self.prefix + prefix, "MaxKeys": self.page_keys}
        while True:
            page = self._call("list_objects_v2", **query)
            if "IsTruncated" not in page:
                raise InputError(f"{self.uri}: the answer is no listing; is AWS_ENDPOINT_URL an S3 server?")
            for item in page.get("Contents", ()):
                # An empty object whose key ends in a slash is how consoles mark a folder.
                if not item["Key"].endswith("/"):
                    entries.append(Entry(item["Key"].removeprefix(self.prefix), item["Size"]))
            if not page["IsTruncated"]:
                return sorted(entries, key=lambda entry: entry.key)
            query["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, key: str) -> None:
        check_key(key)
        self._call("delete_object", key)

    @property
    def _part_bytes(self) -> int:
        return self.config.part_mib << 20

    def _size(self, key: str) -> int:
        return int(self._call("head_object", key)["ContentLength"])

    def _download(self, key: str, start: int, size: int | None) -> bytes:
        """Read a range; go on where a body broke off or stalled, in the same version of the object."""
        data = bytearray()
        end = None if size is None else start + size
        version: dict[str, str] = {}
        for attempt in range(self.config.attempts):
            pause(attempt)
            at = start + len(data)
            whole = at == 0 and size is None
            span = {} if whole else {"Range": f"bytes={at}-{'' if end is None else end - 1}"}
            reply = self._call("get_object", key, **span, **version)
            if span and "ContentRange" not in reply:
                raise StoreError(f"{join_uri(self.uri, key)}: asked for a part, the server sent all of it")
            end = at + int(reply["ContentLength"])
            version = {"IfMatch": reply["ETag"]}
            with closing(reply["Body"]) as body:  # its own `with` would skip the checksum
                try:
                    while chunk := body.read(1 << 20):
                        data += chunk
                except FlexibleChecksumError:
                    data.clear()  # complete, but not what was stored
                except (BotoCoreError, HTTPError):
                    pass  # the next attempt goes on from here
            if start + len(data) == end:
                return bytes(data)
        raise StoreError(
            f"{join_uri(self.uri, key)}: broke off in each of {self.config.attempts} attempts, at last after "
            f"{len(data)} bytes; look after the server, or raise store.attempts and store.timeout_s"
        )

    def _upload_parts(self, key: str, file: Path) -> None:
        """Upload a file part by part, each with its MD5, and check that all of it arrived."""
        upload = {"UploadId": self._call("create_multipart_upload", key)["UploadId"]}
        parts: list[dict[str, Any]] = []
        size = 0
        try:
            for number, part in enumerate(_chunks(file, self._part_bytes), start=1):
                sent = self._call(
                    "upload_part", key, **upload, PartNumber=number, Body=part, ContentMD5=_md5(part)
                )
                parts.append({"PartNumber": number, "ETag": sent["ETag"]})
                size += len(part)
            self._call("complete_multipart_upload", key, **upload, MultipartUpload={"Parts": parts})
        except BaseException:
            with suppress(InputError, StoreError, MissingObject):
                self._call("abort_multipart_upload", key, **upload)
            raise
        arrived = self._size(key)
        if arrived != size:
            raise StoreError(f"{join_uri(self.uri, key)}: {size} bytes were sent and {arrived} arrived")

    def _call(self, operation: str, key: str = "", **parameters: Any) -> Any:
        """One request about the bucket, or about an object in it."""
        if key:
            parameters["Key"] = self.prefix + key
        parameters["Bucket"] = self.bucket
        return request(self._client(), operation, self.config.attempts, self.uri, key, **parameters)

    def _client(self) -> Any:
        """This process's client: threads may share connections, forked processes may not."""
        process = os.getpid()
        if process not in self._clients:
            self._clients[process] = connect(self.config)
        return self._clients[process]


def _chunks(file: Path, size: int) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while chunk := opened.read(size):
            yield chunk


def _md5(data: bytes) -> str:
    """The Content-MD5 header.  Ceph verifies it and takes botocore's CRC32 on trust; Swift verifies both."""
    return b64encode(md5(data, usedforsecurity=False).digest()).decode()
