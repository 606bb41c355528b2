"""The packers that ``pack.py`` compares, each by its library's own means, and one measurement of one of them.

Each turns Kaggle's TIFF files into its format with the given number of processes, in shards of about 256 slices.
Run by ``pack.py`` with a packer's name and a job as JSON; prints a JSON object.  Imports are not timed.
"""

import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.layout import find_patients
from shards.store import open_store

SHARD = 256
"""Slices in a shard."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Job:
    source: str
    """A folder in Kaggle's layout."""
    dest: str
    """A folder, or ``s3://bucket/prefix``; empty or not there."""
    encoding: str
    """``png`` or ``raw``."""
    processes: int

    @property
    def remote(self) -> bool:
        return self.dest.startswith("s3://")


@dataclass(frozen=True)
class Slice:
    patient: str
    number: int
    image: str
    mask: str

    def pixels(self) -> tuple[Pixels, Pixels]:
        """uint8 (H, W, 3) and (H, W) of {0, 1}."""
        return np.asarray(Image.open(self.image)), (np.asarray(Image.open(self.mask)) > 0).astype(np.uint8)


def slices_of(source: str) -> list[Slice]:
    """All slices, patient by patient."""
    patients, _ = find_patients(open_store(source))
    return [
        Slice(p.patient, s.number, f"{source}/{s.image}", f"{source}/{s.mask}")
        for p in patients
        for s in p.slices
    ]


def one_bit(mask_HW: Pixels) -> Image.Image:
    return Image.fromarray(mask_HW * np.uint8(255)).convert("1")


def in_processes(work: Callable[..., None], job: Job) -> None:
    """Each process takes a contiguous part of the slices, so that a peer reads no file twice."""
    slices = slices_of(job.source)
    cuts = [len(slices) * part // job.processes for part in range(job.processes + 1)]
    context = multiprocessing.get_context("fork")
    running = [
        context.Process(target=work, args=(job, number, slices[cuts[number] : cuts[number + 1]]))
        for number in range(job.processes)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a process ended with {process.exitcode}")


def ours() -> Callable[[Job], dict[str, float]]:
    from shards.config import NoSplit, PackConfig, StoreConfig
    from shards.pack import pack
    from shards.verify import verify_source

    def run(job: Job) -> dict[str, float]:
        store = StoreConfig()
        start = time.perf_counter()
        report = verify_source(job.source, store, job.processes)
        verified = time.perf_counter()
        config = PackConfig(encoding=job.encoding, samples_per_shard=SHARD, workers=job.processes)
        pack(report, job.dest, source=job.source, split=NoSplit(), config=config, store=store)
        return {"verify_s": verified - start, "pack_s": time.perf_counter() - verified}

    return run


def webdataset() -> Callable[[Job], dict[str, float]]:
    """Its ``ShardWriter``; on S3 its ``post`` hook sends each finished shard."""
    import webdataset as wds
    from contenders.contract import s3_client

    def write(job: Job, number: int, slices: Sequence[Slice]) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            folder, send = job.dest, None
            if job.remote:
                folder, client = scratch, s3_client()
                bucket, _, prefix = job.dest.removeprefix("s3://").partition("/")

                def send(path: str) -> None:
                    client.upload_file(path, bucket, f"{prefix}/{os.path.basename(path)}")
                    os.remove(path)

            else:
                Path(folder).mkdir(exist_ok=True)
            pattern = f"{folder}/{number}-%06d.tar"
            with wds.ShardWriter(pattern, maxcount=SHARD, maxsize=1e12, verbose=0, post=send) as writer:
                for item in slices:
                    image, mask = item.pixels()
                    sample = {
                        "__key__": f"{item.patient}_{item.number:04d}",
                        "json": {"patient": item.patient, "slice": item.number},
                    }
                    if job.encoding == "png":
                        sample |= {"image.png": Image.fromarray(image), "mask.png": one_bit(mask)}
                    else:
                        sample |= {"image.npy": image, "mask.npy": mask}
                    writer.write(sample)

    return lambda job: _timed(lambda: in_processes(write, job))


def streaming() -> Callable[[Job], dict[str, float]]:
    """Its ``MDSWriter``, one for each process, and its ``merge_index``."""
    from streaming import MDSWriter
    from streaming.base.util import merge_index

    size_limit = {"png": 1 << 24, "raw": 1 << 26}  # bytes; comes to about SHARD slices

    def write(job: Job, number: int, slices: Sequence[Slice]) -> None:
        columns = {"image": "png", "mask": "png"}
        if job.encoding == "raw":
            shapes = [",".join(map(str, pixels.shape)) for pixels in slices[0].pixels()]
            columns = {name: f"ndarray:uint8:{shape}" for name, shape in zip(columns, shapes, strict=True)}
        columns |= {"patient": "str", "slice": "int"}
        out = f"{job.dest}/{number}"
        with MDSWriter(out=out, columns=columns, size_limit=size_limit[job.encoding]) as writer:
            for item in slices:
                image, mask = item.pixels()
                pixels = {"image": image, "mask": mask}
                if job.encoding == "png":
                    pixels = {"image": Image.fromarray(image), "mask": one_bit(mask)}
                writer.write({**pixels, "patient": item.patient, "slice": item.number})

    def run(job: Job) -> None:
        os.environ["S3_ENDPOINT_URL"] = os.environ.get("AWS_ENDPOINT_URL", "")
        in_processes(write, job)
        merge_index(job.dest, keep_local=True)

    return lambda job: _timed(lambda: run(job))


def as_png_bytes(item: Slice) -> dict[str, Any]:
    """A sample for LitData, which has no type of its own for PNG."""
    import io

    found: dict[str, Any] = {"patient": item.patient, "slice": item.number}
    image, mask = item.pixels()
    for name, picture in (("image", Image.fromarray(image)), ("mask", one_bit(mask))):
        out = io.BytesIO()
        picture.save(out, "PNG")
        found[name] = out.getvalue()
    return found


def as_arrays(item: Slice) -> dict[str, Any]:
    image, mask = item.pixels()
    return {"image": image, "mask": mask, "patient": item.patient, "slice": item.number}


def litdata() -> Callable[[Job], dict[str, float]]:
    """Its ``optimize``."""
    from litdata import optimize

    def run(job: Job) -> None:
        options = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]} if job.remote else {}
        optimize(
            as_png_bytes if job.encoding == "png" else as_arrays,
            slices_of(job.source),
            job.dest,
            chunk_size=SHARD,
            num_workers=job.processes,
            storage_options=options,
            verbose=False,
        )

    return lambda job: _timed(lambda: run(job))


def _timed(work: Callable[[], None]) -> dict[str, float]:
    start = time.perf_counter()
    work()
    return {"pack_s": time.perf_counter() - start}


PACKERS = {"ours": ours, "webdataset": webdataset, "streaming": streaming, "litdata": litdata}


if __name__ == "__main__":
    chosen = PACKERS[sys.argv[1]]()
    result = chosen(Job(**json.loads(sys.argv[2])))
    sys.stdout.write(f"\n{json.dumps(result)}\n")
