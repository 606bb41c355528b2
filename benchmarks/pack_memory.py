"""How much memory the process needs that directs a packing, for few and for many samples.

Every patient's files are the same few tiny TIFFs, so that the source, its listing and its scans take next to nothing;
tasks, processes, shards, parts, index and manifest are the real thing.  Run by ``pack.py``, or alone:

    python benchmarks/pack_memory.py 20000      # prints a JSON object
"""

import json
import re
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from shards.config import NoSplit, PackConfig, StoreConfig
from shards.layout import find_patients
from shards.manifest import INDEX
from shards.pack import pack
from shards.store import open_store
from shards.verify import SourceReport, join_scans, scan_patient

SLICES = 40
"""Of each patient."""
SIDE = 16
SAMPLES_PER_SHARD = 256


def source_of(num_samples: int, folder: Path) -> SourceReport:
    """A source of so many samples: one patient's files, under as many names as it takes."""
    place = folder / "tiny"
    place.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(1, SLICES + 1):
        image = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(image).save(place / f"tiny_{number}.tif")
        Image.fromarray((image[..., 0] > 250) * np.uint8(255)).save(place / f"tiny_{number}_mask.tif")
    store = open_store(str(folder))
    (patient,), _ = find_patients(store)
    scan = replace(scan_patient(store, patient), image_digests=(), problems=())
    names = [f"tiny{number:06d}" for number in range(num_samples // SLICES)]
    return join_scans(
        [replace(patient, patient=name, folder=name) for name in names],
        [replace(scan, patient=name, folder=name) for name in names],
        [],
    )


def peak_mib() -> float:
    """The most memory that this process alone has held so far (getrusage's figure would begin with its parent's)."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def measure(num_samples: int, processes: int = 2) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="bts-bench-") as name:
        report = source_of(num_samples, Path(name, "source"))
        before, start = peak_mib(), time.perf_counter()
        manifest = pack(
            report,
            f"{name}/data",
            source=f"{name}/source",
            split=NoSplit(),
            config=PackConfig(samples_per_shard=SAMPLES_PER_SHARD, workers=processes),
            store=StoreConfig(),
        )
        return {
            "samples": manifest.num_samples(),
            "shards": len(manifest.shards),
            "before_mib": before,
            "peak_mib": peak_mib(),
            "index_mib": Path(name, "data", INDEX).stat().st_size / 2**20,
            "seconds": time.perf_counter() - start,
        }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(int(sys.argv[1]))) + "\n")
