"""What every store promises, on a folder and on a real S3 server; then what is special to folders."""

import errno
import multiprocessing
import os
import pickle
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import InputError
from shards.s3 import S3Store
from shards.store import AlreadyExists, Entry, LocalStore, MissingObject, ObjectStore, join_uri, open_store

FORK = multiprocessing.get_context("fork")
NOBODY = 65534


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "local":
        return open_store(str(tmp_path / "store"))
    return open_store(request.getfixturevalue("bucket") + "/some/prefix")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user of the machine may enter, unlike pytest's."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def in_child(work: Callable[[], object], uid: int | None = None) -> object:
    """The result of ``work``, or the exception it raised, in a forked process of another user."""
    results = FORK.SimpleQueue()

    def run() -> None:
        if uid is not None and os.geteuid() == 0:  # root may write anywhere
            os.setuid(uid)
        try:
            results.put(work())
        except InputError as error:
            results.put(error)

    process = FORK.Process(target=run)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    return results.get()


def test_bytes_and_files_come_back(store: ObjectStore, tmp_path: Path) -> None:
    file = tmp_path / "volume.bin"
    file.write_bytes(bytes(range(256)) * 40)
    store.put("a/bytes", b"tumour")
    store.put("a/file", file)
    store.put("a/memory", memoryview(bytearray(b"a tumour"))[2:])
    store.put("empty", b"")
    assert store.get("a/bytes") == store.get("a/memory") == b"tumour"
    assert store.get("a/file") == file.read_bytes()
    assert store.get("empty") == b""


def test_a_range_is_a_slice(store: ObjectStore) -> None:
    data = b"0123456789"
    store.put("digits", data)
    for start, size in ((0, 4), (3, 4), (8, 99), (99, 2), (2, 0)):
        assert store.get("digits", start, size) == data[start : start + size]
    for start in (0, 8, 10, 99):
        assert store.get("digits", start) == data[start:]


def test_put_replaces(store: ObjectStore) -> None:
    store.put("manifest.json", b"a long first version")
    store.put("manifest.json", b"second")
    assert store.get("manifest.json") == b"second"
    assert store.list() == [Entry("manifest.json", 6)]


def test_list_is_recursive_and_sorted_and_takes_any_prefix(store: ObjectStore) -> None:
    for key in ("b", "a/2", "a/1", "a/deep/er/3", "a.txt", "aß &+%#?"):
        store.put(key, key.encode())
    keys = ["a.txt", "a/1", "a/2", "a/deep/er/3", "aß &+%#?", "b"]
    assert store.list() == [Entry(key, len(key.encode())) for key in keys]
    assert [entry.key for entry in store.list("a/")] == ["a/1", "a/2", "a/deep/er/3"]
    assert [entry.key for entry in store.list("a/d")] == ["a/deep/er/3"]
    assert store.list("b/") == store.list("c/d/") == []


def test_a_missing_object_is_named(store: ObjectStore) -> None:
    store.put("folder/there", b"x")
    for key in ("nothing", "folder", "folder/there/below"):
        with pytest.raises(MissingObject) as caught:
            store.get(key)
        assert caught.value.key == key
        assert f"{store.uri}/{key}" in str(caught.value)
    with pytest.raises(MissingObject):
        store.get("nothing", 0, 0)


def test_if_absent_keeps_the_first(store: ObjectStore, tmp_path: Path) -> None:
    file = tmp_path / "second"
    file.write_bytes(b"second")
    store.put("manifest.json", b"first", if_absent=True)
    for data in (b"second", b"first", file):
        with pytest.raises(AlreadyExists, match=r"manifest\.json: already exists") as caught:
            store.put("manifest.json", data, if_absent=True)
        assert caught.value.key == "manifest.json"
    assert store.get("manifest.json") == b"first"


def test_both_stores_have_conditional_writes(store: ObjectStore) -> None:
    store.check_conditional_writes()
    assert store.list() == []


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_hard_links_is_named(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    store = open_store(str(tmp_path))
    with pytest.raises(
        InputError, match=rf"^{tmp_path}: its file system has no hard links.*; choose a folder on"
    ):
        store.check_conditional_writes()
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_overwrites_all_the_same_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "hardlink_to", lambda path, target: Path(target).replace(path))
    with pytest.raises(
        InputError, match=r"overwrites a file although it was told not to.*; choose a folder on"
    ):
        open_store(str(tmp_path)).check_conditional_writes()
    assert list(tmp_path.iterdir()) == []


def test_delete_is_idempotent(store: ObjectStore) -> None:
    store.put("a/b", b"x")
    store.put("a/c", b"y")
    for key in ("a/b", "a/b", "never/was", "a/c/below"):
        store.delete(key)
    assert store.list() == [Entry("a/c", 1)]


def test_deleting_takes_the_folders_it_empties_but_not_the_store_itself(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    for key in ("parts/deep/1.json", "parts/2.json", "notes/deep/3"):
        store.put(key, b"x")
    store.delete("parts/deep/1.json")
    assert sorted(os.listdir(tmp_path / "store" / "parts")) == ["2.json"]
    store.delete("parts/2.json")
    assert os.listdir(tmp_path / "store") == ["notes"]
    store.delete("notes/deep/3")
    assert os.listdir(tmp_path / "store") == []
    assert os.listdir(tmp_path) == ["store"]


def test_a_folder_that_another_thread_empties_can_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # only to be quick
    store = open_store(str(tmp_path))

    def come_and_go(number: int) -> None:
        for _ in range(60):
            store.put(f"parts/{number}", b"x")
            store.delete(f"parts/{number}")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(come_and_go, range(4)))
    assert os.listdir(tmp_path) == []


def test_keys_stay_inside(store: ObjectStore) -> None:
    for key in ("", "/etc/passwd", "../up", "a/../../up", "a//b", "a/", "./a", "a\0b"):
        with pytest.raises(InputError, match="no valid key"):
            store.get(key)
        with pytest.raises(InputError, match="no valid key"):
            store.put(key, b"x")
        with pytest.raises(InputError, match="no valid key"):
            store.delete(key)


def test_an_empty_store_lists_nothing(store: ObjectStore) -> None:
    assert store.list() == store.list("some/where") == []
    with pytest.raises(MissingObject):
        store.get("key")


def test_threads_forks_and_pickles_share_a_store(store: ObjectStore) -> None:
    keys = [f"shard-{number}" for number in range(8)]
    for key in keys:
        store.put(key, key.encode())
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(store.get, keys)) == [key.encode() for key in keys]
    assert in_child(lambda: store.get("shard-3")) == b"shard-3"
    copy = pickle.loads(pickle.dumps(store))  # noqa: S301
    assert copy == store
    assert copy.get("shard-3") == b"shard-3"


def test_errors_survive_a_process_boundary() -> None:
    for error in (MissingObject("key", "s3://bucket"), AlreadyExists("key", "s3://bucket")):
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301
        assert (type(copy), copy.key, copy.uri, str(copy)) == (type(error), "key", "s3://bucket", str(error))


PARTS = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12)
KEYS = st.lists(PARTS.filter(lambda part: part not in (".", "..")), min_size=1, max_size=4).map("/".join)


@settings(max_examples=60)
@given(st.dictionaries(KEYS, st.binary(max_size=200), max_size=6))
def test_any_keys_and_bytes_come_back_sorted(objects: dict[str, bytes]) -> None:
    objects = {
        key: data
        for key, data in objects.items()
        if not any(other.startswith(f"{key}/") for other in objects)
    }
    with tempfile.TemporaryDirectory() as root:
        store = open_store(root)
        for key, data in objects.items():
            store.put(key, data, if_absent=True)
        assert store.list() == [Entry(key, len(objects[key])) for key in sorted(objects)]
        assert {key: store.get(key) for key in objects} == objects


def test_one_of_many_writers_wins(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    start = threading.Barrier(8)

    def write(number: int) -> bool:
        start.wait()
        try:
            store.put("manifest.json", bytes([number]) * 100_000, if_absent=True)
        except AlreadyExists:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(write, range(8)))
    assert sum(won) == 1
    assert store.get("manifest.json") == bytes([won.index(True)]) * 100_000
    assert os.listdir(tmp_path) == ["manifest.json"]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    store.put("shards/a.tar", b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=f"{tmp_path}/shards: cannot write to.*free some space"):
        store.put("shards/a.tar", b"new")
    assert os.listdir(tmp_path / "shards") == ["a.tar"]
    assert store.get("shards/a.tar") == b"old"


def test_half_written_files_are_no_objects(tmp_path: Path) -> None:
    name = f".bts-{0:032x}.tmp"
    (tmp_path / name).write_bytes(b"from a writer that was killed")
    store = open_store(str(tmp_path))
    assert store.list() == []
    with pytest.raises(InputError, match="half-written"):
        store.get(name)


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match=f"{tmp_path}/file/store: .*move the file"):
        open_store(f"{tmp_path}/file/store").put("key", b"")
    with pytest.raises(InputError, match=f"{tmp_path}/file: cannot list"):
        open_store(f"{tmp_path}/file").list()
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="move the folder"):
        open_store(str(tmp_path)).put("folder", b"")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_folder_without_rights_is_named(open_folder: Path) -> None:
    store = open_store(str(open_folder / "locked"))
    store.put("patient/slice.tif", b"x")
    (open_folder / "locked").chmod(0o555)
    written = in_child(lambda: store.put("manifest.json", b"{}"), NOBODY)
    made = in_child(lambda: store.put("more/manifest.json", b"{}"), NOBODY)
    (open_folder / "locked" / "patient").chmod(0)
    listed = in_child(store.list, NOBODY)
    read = in_child(lambda: store.get("patient/slice.tif"), NOBODY)
    (open_folder / "locked" / "patient").chmod(0o755)
    for refused, place in ((written, ""), (made, "/more"), (listed, ""), (read, "/patient/slice.tif")):
        assert isinstance(refused, InputError)
        assert str(refused).startswith(f"{open_folder}/locked{place}: cannot ")
        assert "permission denied; give this user access" in str(refused)


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "slice.tif").write_bytes(b"123")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "patient").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "store" / "dangling").symlink_to(tmp_path / "nowhere")
    store = open_store(str(tmp_path / "store"))
    assert store.list() == [Entry("patient/slice.tif", 3)]
    (tmp_path / "store" / "circle").symlink_to(tmp_path / "store")
    with pytest.raises(InputError, match="remove the symbolic link"):
        store.list()


@pytest.mark.parametrize("prefix", ["../", "a/../../", "/etc/"])
def test_a_listing_stays_inside(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(InputError, match="no valid key"):
        open_store(str(tmp_path)).list(prefix)


def test_open_store_reads_the_location(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert open_store("data/shards/") == LocalStore("data/shards", tmp_path / "data" / "shards")
    assert open_store("~/x") == LocalStore("~/x", Path("/home/someone/x"))
    assert open_store("/") == LocalStore("/", Path("/"))
    assert open_store("file:///a%20b/") == LocalStore("file:///a%20b", Path("/a b"))
    store = open_store("s3://bucket/some/prefix/")
    assert isinstance(store, S3Store)
    assert (store.uri, store.bucket, store.prefix) == ("s3://bucket/some/prefix", "bucket", "some/prefix/")


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("", "is empty"),
        ("gs://bucket/x", "unknown scheme gs://"),
        ("https://host/x", "unknown scheme https://"),
        ("s3:/bucket/x", "write s3://"),
        ("s3://", "names no bucket"),
        ("s3:///x", "names no bucket"),
        ("file://host/x", "file:///"),
    ],
)
def test_open_store_refuses_what_it_does_not_know(uri: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_store(uri)


def test_join_uri() -> None:
    assert join_uri("s3://b/x/", "y", "z") == "s3://b/x/y/z"
    assert join_uri("runs", "a/", "", "/b/c") == "runs/a/b/c"
    assert join_uri("/", "a") == "/a"
    assert join_uri("s3://b") == "s3://b"
