"""``ObjectStore`` on S3, through botocore.  Endpoint, region and credentials: the usual AWS environment."""

import io
import os
import re
import uuid
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from hashlib import md5
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, FlexibleChecksumError
from urllib3.exceptions import HTTPError

from shards.config import StoreConfig
from shards.errors import InputError
from shards.patience import Patience
from shards.s3_request import BeyondEndError, PreconditionError, connect, request
from shards.store import AlreadyExists, Entry, MissingObject, StoreError, check_key, join_uri

_PIECE = 256 << 10  # of a body, at a time: at most so much is lost when it stalls, and counts as no progress
_LARGEST_PUT = 5 << 30  # S3's limits on one request and on the parts of an upload
_MOST_PARTS = 10_000


@dataclass(frozen=True)
class S3Store:
    """Objects in a bucket, below a prefix.

    ``if_absent`` is as atomic as the server's ``If-None-Match: *``: AWS and Ceph let one writer win; of
    several that race, OpenStack Swift may let more than one through.  It always goes as one request of at
    most 5 GiB, since Ceph 18 disregards the condition at the end of a multipart upload.

    What is sent carries its MD5, which the server compares.  The ETag it answers with is not looked at: a server
    that encrypts, or makes ETags its own way, gives one that looks like an MD5 and is another, so a difference
    proves nothing.
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
            raise self._replaced(key) from error

    def put(self, key: str, data: bytes | memoryview | Path, *, if_absent: bool = False) -> None:
        check_key(key)
        size = data.stat().st_size if isinstance(data, Path) else len(data)
        if not if_absent and size > self._part_bytes:
            self._upload_parts(key, data, size)
            return
        if size > _LARGEST_PUT:
            raise InputError(
                f"{join_uri(self.uri, key)}: {size} bytes; no more than 5 GiB can be written on the condition "
                "that nothing is there; write less, or without the condition"
            )
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if if_absent else {}
        body = _read(data, 0, size)
        try:
            self._call("put_object", key, Body=body, ContentMD5=_md5(body), **condition)
        except PreconditionError as error:
            if error.resent and self.get(key) == body:
                return  # the first try got through and only its answer was lost
            raise AlreadyExists(key, self.uri) from error

    def check_conditional_writes(self) -> None:
        key = f"conditional-write-{uuid.uuid4().hex}"
        try:
            self.put(key, b"first", if_absent=True)
            self.put(key, b"second", if_absent=True)
        except AlreadyExists:
            return
        finally:
            self.delete(key)
        raise InputError(
            f"{self.uri}: {self._client().meta.endpoint_url} overwrites an object although it was told not to "
            "(If-None-Match: *), so of two writers neither would notice the other; use a server with conditional "
            "writes, or a shared folder"
        )

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
        data = io.BytesIO()  # its value is handed out without another copy
        end = None if size is None else start + size
        etag = ""
        patience = Patience.of(self.config)
        while True:
            before = data.tell()
            reply = self._open(key, start + before, end, etag, patience)
            due = before + int(reply["ContentLength"])
            etag = reply["ETag"]
            trouble = "broke off"
            with closing(reply["Body"]) as body:  # its own `with` would skip the checksum
                try:
                    while piece := body.read(_PIECE):
                        data.write(piece)
                        if patience.overdue() and data.tell() < due:
                            break
                except FlexibleChecksumError:  # complete, but not what was stored
                    data, trouble = io.BytesIO(), "arrived damaged"
                except (BotoCoreError, HTTPError):
                    pass  # the next try goes on from here
            if data.tell() == due:
                return data.getvalue()
            if data.tell() > before:
                patience.progressed()
            if not patience.wait():
                raise StoreError(
                    f"{join_uri(self.uri, key)}: {trouble} with {data.tell()} of {due} bytes good, and {patience}; "
                    "look after the server and the network, or raise that setting"
                )

    def _open(self, key: str, at: int, end: int | None, etag: str, patience: Patience) -> Any:
        """The answer to a GET of bytes ``at`` to ``end``, of the version of this ETag if there is one."""
        whole = at == 0 and end is None
        span = {} if whole else {"Range": f"bytes={at}-{'' if end is None else end - 1}"}
        version = {"IfMatch": etag} if etag else {}
        reply = self._call("get_object", key, patience, **span, **version)
        if not {"ContentLength", "ETag"} <= reply.keys():
            raise InputError(
                f"{join_uri(self.uri, key)}: the answer is no object; is AWS_ENDPOINT_URL an S3 server?"
            )
        if span and not reply.get("ContentRange", "").startswith(f"bytes {at}-"):
            raise StoreError(
                f"{join_uri(self.uri, key)}: asked for a part, the server sent another or all of it"
            )
        if etag and reply["ETag"] != etag:  # not every server heeds If-Match
            raise self._replaced(key)
        return reply

    def _replaced(self, key: str) -> StoreError:
        return StoreError(
            f"{join_uri(self.uri, key)}: was replaced while it was being read; see that nobody writes to "
            f"{self.uri}, then try again"
        )

    def _upload_parts(self, key: str, data: bytes | memoryview | Path, size: int) -> None:
        """Upload several parts at a time, each with its MD5, and check that all of it arrived."""
        upload = {"UploadId": self._call("create_multipart_upload", key)["UploadId"]}
        length = max(self._part_bytes, -(-size // _MOST_PARTS))

        def send(number: int) -> dict[str, Any]:
            part = _read(data, (number - 1) * length, length)
            sent = self._call(
                "upload_part", key, **upload, PartNumber=number, Body=part, ContentMD5=_md5(part)
            )
            return {"PartNumber": number, "ETag": sent["ETag"]}

        try:
            with ThreadPoolExecutor(self.config.upload_threads) as threads:
                parts = list(threads.map(send, range(1, -(-size // length) + 1)))
            self._call("complete_multipart_upload", key, **upload, MultipartUpload={"Parts": parts})
        except BaseException:
            with suppress(InputError, StoreError, MissingObject):
                self._call("abort_multipart_upload", key, **upload)
            raise
        arrived = self._size(key)
        if arrived != size:
            raise StoreError(f"{join_uri(self.uri, key)}: {size} bytes were sent and {arrived} arrived")

    def _call(
        self, operation: str, key: str = "", patience: Patience | None = None, **parameters: Any
    ) -> Any:
        """One request about the bucket, or about an object in it."""
        if key:
            parameters["Key"] = self.prefix + key
        parameters["Bucket"] = self.bucket
        return request(
            self._client(), operation, patience or Patience.of(self.config), self.uri, key, **parameters
        )

    def _client(self) -> Any:
        """This process's client: threads may share connections, forked processes may not."""
        process = os.getpid()
        if process not in self._clients:
            self._clients[process] = connect(self.config)
        return self._clients[process]


def _read(data: bytes | memoryview | Path, start: int, size: int) -> bytes:
    if not isinstance(data, Path):
        return bytes(data[start : start + size])
    with data.open("rb") as file:
        file.seek(start)
        return file.read(size)


def _md5(data: bytes) -> str:
    """The Content-MD5 header.  Ceph verifies it and takes botocore's CRC32 on trust; Swift verifies both."""
    return b64encode(md5(data, usedforsecurity=False).digest()).decode()
