"""The data that loaders are compared on: made once from one source, in each contender's format, and put on S3."""

import os
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
from contenders import PACKED, Row
from contenders.contract import Slice, keys_below, s3_client

from shards.config import PhantomConfig, StoreConfig
from shards.layout import find_patients
from shards.manifest import INDEX
from shards.phantom import generate
from shards.store import open_store

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from swift_server import ACCESS_KEY, SECRET_KEY, SwiftServer, install


def phantom(folder: Path, quick: bool) -> Path:
    """A generated source: a small one to prove that the benchmark runs, or one of slices as large as Kaggle's."""
    small = PhantomConfig(patients=8, size=64, min_slices=6, max_slices=8)
    generate(small if quick else PhantomConfig(size=256, min_slices=20, max_slices=40), folder)
    return folder


def make_formats(rows: Sequence[Row], source: Path, formats: Path) -> list[Slice]:
    """Make each row's data set that is not there yet; return the slices that all of them hold.

    The slices are the training split of our packed data, which is therefore made first.
    """
    slices: list[Slice] = []
    for row in (PACKED, *rows):
        folder = formats / row.data
        if not folder.exists():
            sys.stderr.write(f"making {folder}\n")
            unfinished = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.partial")
            unfinished.mkdir(parents=True)
            row.load().write(source, slices, unfinished, row.encoding)
            unfinished.rename(folder)
        slices = slices or _training_slices(source, formats / PACKED.data)
    return slices


def _training_slices(source: Path, packed: Path) -> list[Slice]:
    rows = pq.read_table(packed / INDEX, columns=["split", "key", "patient", "slice"]).to_pylist()
    patients, _ = find_patients(open_store(str(source), StoreConfig()))
    files = {(p.patient, s.number): s for p in patients for s in p.slices}
    found = [(row["key"], files[row["patient"], row["slice"]]) for row in rows if row["split"] == "train"]
    return [Slice(key, source / file.image, source / file.mask) for key, file in found]


def drop_from_page_cache(folder: Path) -> None:
    """Have the next read of the folder's files come from the disk."""
    os.sync()  # pages not written yet would stay
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def s3_server(folder: Path) -> Iterator[None]:
    """The server that AWS_ENDPOINT_URL names, or OpenStack Swift on this machine, as in the tests."""
    if "AWS_ENDPOINT_URL" in os.environ:
        yield
        return
    cache = Path(os.environ.get("BTS_TEST_CACHE", Path.home() / ".cache" / "bts-dist"))
    with SwiftServer(install(cache), folder / "swift") as server:
        os.environ |= {
            "AWS_ENDPOINT_URL": server.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        yield


@contextmanager
def uploaded(formats: Path, names: set[str]) -> Iterator[str]:
    """A bucket with the named folders, emptied and removed afterwards."""
    client, bucket = s3_client(), f"bts-loader-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=bucket)
    try:
        for name in sorted(names):
            sys.stderr.write(f"uploading {name}\n")
            for path in sorted((formats / name).rglob("*")):
                if path.is_file():
                    client.upload_file(str(path), bucket, path.relative_to(formats).as_posix())
        os.sync()
        yield bucket
    finally:
        for name in names:
            for _, key in keys_below(f"s3://{bucket}/{name}"):
                client.delete_object(Bucket=bucket, Key=key)
        client.delete_bucket(Bucket=bucket)
