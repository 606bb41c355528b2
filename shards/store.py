"""Where bytes lie: one small contract, kept by a folder (here) and by S3 (``shards.s3``)."""

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from shards.config import StoreConfig
from shards.errors import InputError
from shards.location import local_path, scheme


class MissingObject(LookupError):  # noqa: N818 - states what is, not what failed
    """The store has no object of this key."""

    def __init__(self, key: str, uri: str = "") -> None:
        super().__init__(key, uri)
        self.key = key
        self.uri = uri

    def __str__(self) -> str:
        return f"{join_uri(self.uri, self.key)}: no such object"


class AlreadyExists(Exception):  # noqa: N818 - to the loser of a race it is an answer
    """An object of this key was there first, and ``if_absent`` forbids replacing it."""

    def __init__(self, key: str, uri: str = "") -> None:
        super().__init__(key, uri)
        self.key = key
        self.uri = uri

    def __str__(self) -> str:
        return f"{join_uri(self.uri, self.key)}: already exists"


class StoreError(OSError):
    """The store failed for reasons of its own, after every try that the config allows."""


@dataclass(frozen=True)
class Entry:
    """One object in a listing."""

    key: str
    size: int
    """Length in bytes."""


class ObjectStore(Protocol):
    """Objects under one location, by key.

    A key is a relative path with ``/`` between its parts; no part is empty, ``.`` or ``..``.
    Stores pickle, and serve threads and forked processes alike.  What the user can mend (rights,
    a wrong bucket, a full disk) raises ``InputError``; a store that keeps failing, ``StoreError``.
    """

    @property
    def uri(self) -> str:
        """The location as it was given, without a trailing slash."""
        ...

    def get(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        """The object's bytes, like ``data[start : start + size]``; raises ``MissingObject``."""
        ...

    def put(self, key: str, data: bytes | memoryview | Path, *, if_absent: bool = False) -> None:
        """Write an object from memory or from a local file: readers see all of it or nothing.

        It replaces what was there; with ``if_absent`` it raises ``AlreadyExists`` instead.
        """
        ...

    def list(self, prefix: str = "") -> list[Entry]:
        """Every object, at any depth, whose key starts with ``prefix``, sorted by key."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""
        ...

    def check_conditional_writes(self) -> None:
        """Try out whether ``if_absent`` holds here, and raise ``InputError`` if it would overwrite all the same."""
        ...


def open_store(uri: str, config: StoreConfig | None = None) -> ObjectStore:
    """The store at ``s3://bucket/prefix``, ``file:///folder`` or a path.  Nothing is touched yet."""
    found = scheme(uri)
    if found and not uri.startswith(f"{found}://"):
        raise InputError(f"{uri}: a slash is missing after {found}:/; write {found}://…")
    match found:
        case "s3":
            from shards.s3 import S3Store  # botocore loads slowly, and local runs do without it

            return S3Store(uri.rstrip("/"), config or StoreConfig())
        case "" | "file":
            return LocalStore(uri.rstrip("/") or "/", local_path(uri))
        case _:
            raise InputError(f"{uri}: unknown scheme {found}://; use a path, file:// or s3://bucket/prefix")


def join_uri(base: str, *parts: str) -> str:
    """``join_uri("s3://b/x/", "y", "z")`` is ``s3://b/x/y/z``; empty parts leave no trace."""
    inner = (part.strip("/") for part in parts)
    return "/".join([base.rstrip("/"), *(part for part in inner if part)])


def check_key(key: str) -> None:
    """Raise ``InputError`` for a key that is no plain relative path."""
    if "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise InputError(
            f"{key!r} is no valid key; use a relative path with '/' and without empty, '.' or '..' parts"
        )
    if _TEMPORARY.fullmatch(key.rpartition("/")[2]):
        raise InputError(f"{key!r} is the name of a half-written file; choose another one")


_TEMPORARY = re.compile(r"\.bts-[0-9a-f]{32}\.tmp")

_TRIES = 100  # of making a folder

_REMEDIES = {
    errno.EACCES: "give this user access to it, or choose another folder",
    errno.EPERM: "give this user access to it, or choose another folder",
    errno.ENOTSUP: "choose a folder on another file system",
    errno.EROFS: "mount it writable, or choose another folder",
    errno.ENOSPC: "free some space, or choose another folder",
    errno.EDQUOT: "free some space, or choose another folder",
    errno.ENOTDIR: "move the file that lies where a folder should be, or choose another folder",
    errno.EEXIST: "move the file that lies where a folder should be, or choose another folder",
    errno.EISDIR: "move the folder that lies where the file should be, or choose another one",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "remove the symbolic link that leads back to its own folder",
}


_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What ``link`` says where it cannot work, in a folder in which a file has just been made."""


@contextmanager
def _explained(what: str, path: Path) -> Iterator[None]:
    """Turn the operating system's refusals that a user can mend into ``InputError``."""
    try:
        yield
    except OSError as error:
        if error.errno in _REMEDIES:
            reason = (error.strerror or str(error)).lower()
            raise InputError(f"{path}: cannot {what}: {reason}; {_REMEDIES[error.errno]}") from error
        raise


@dataclass(frozen=True)
class LocalStore:
    """Objects as files below one folder, which the first ``put`` creates.

    Folders below it come and go with the objects in them, as they do in a bucket.
    """

    uri: str
    root: Path

    def get(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        path = self._path(key)
        with _explained("read", path):
            try:
                with path.open("rb") as file:
                    file.seek(start)
                    return file.read(size)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
                raise MissingObject(key, self.uri) from error

    def put(self, key: str, data: bytes | memoryview | Path, *, if_absent: bool = False) -> None:
        path = self._path(key)
        temporary = path.with_name(f".bts-{uuid.uuid4().hex}.tmp")
        with data.open("rb") if isinstance(data, Path) else nullcontext(data) as source:
            with _explained("create", path.parent):
                opened = _open_new(temporary)
            with _explained("write to", path.parent):
                try:
                    _write_durably(opened, source)
                    if if_absent:
                        self._link_once(temporary, path, key)
                    else:
                        temporary.replace(path)
                    _sync_folder(path.parent)
                finally:
                    temporary.unlink(missing_ok=True)

    def list(self, prefix: str = "") -> list[Entry]:
        below = prefix.rpartition("/")[0]
        if below:
            check_key(below)
        entries = (entry for entry in self._walk(self.root / below) if entry.key.startswith(prefix))
        return sorted(entries, key=lambda entry: entry.key)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with _explained("delete", path), suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
            for folder in path.parents[: key.count("/")]:
                try:
                    folder.rmdir()
                except OSError:  # not empty, or not ours to remove
                    break

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
            f"{self.uri}: its file system overwrites a file although it was told not to (link), so of two writers "
            "neither would notice the other; choose a folder on another file system, or s3://"
        )

    def _path(self, key: str) -> Path:
        check_key(key)
        return self.root / key

    def _walk(self, folder: Path) -> Iterator[Entry]:
        absent = FileNotFoundError if folder == self.root else (FileNotFoundError, NotADirectoryError)

        def refuse(error: OSError) -> None:
            if not isinstance(error, absent):
                raise error  # os.walk would leave out what it cannot read

        with _explained("list", folder):
            for place, _, names in os.walk(folder, onerror=refuse, followlinks=True):
                for name in names:
                    if _TEMPORARY.fullmatch(name):
                        continue
                    path = Path(place, name)
                    with suppress(FileNotFoundError):  # deleted since, or a dangling link
                        yield Entry(path.relative_to(self.root).as_posix(), path.stat().st_size)

    def _link_once(self, temporary: Path, path: Path, key: str) -> None:
        """Give a finished file its name unless that is taken: the system lets exactly one writer win."""
        try:
            path.hardlink_to(temporary)
        except FileExistsError as error:
            raise AlreadyExists(key, self.uri) from error
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            raise InputError(
                f"{path.parent}: its file system has no hard links, without which of two writers neither would "
                "notice the other; choose a folder on another file system, or s3://"
            ) from error


def _open_new(path: Path) -> BinaryIO:
    """Create a file and its folder, which a deletion next door may take away before the file is in it."""
    for _ in range(_TRIES):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("xb")
        except FileNotFoundError:
            continue
        except FileExistsError:
            # mkdir found a folder that was gone when it looked again; a file in the way is there still.
            if path.parent.is_file():
                raise
    raise FileNotFoundError(errno.ENOENT, "the folder keeps vanishing", str(path.parent))


def _write_durably(opened: BinaryIO, source: bytes | memoryview | BinaryIO) -> None:
    with opened as file:
        if isinstance(source, bytes | memoryview):
            file.write(source)
        else:
            shutil.copyfileobj(source, file, 1 << 20)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a new name in a folder survive a power cut."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # deleted since, with all that was in it
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
