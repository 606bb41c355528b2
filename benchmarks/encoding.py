"""What each encoding of a slice costs: bytes, and milliseconds to encode, to check and to decode.

    python benchmarks/encoding.py data/kaggle_3m      # a source, or a packed data set; by default phantoms

Every encoding has its turn in every round, on the same slices; a figure is that of the fastest round, since what else
a machine does only ever adds to it.  With two threads it is the time from start to end, for each slice: half of one
thread's where the decoder leaves the interpreter's lock alone and two cores are free.  Writes
benchmarks/results/encodings.md.
"""

import argparse
import hashlib
import io
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import environment
import numpy as np
from PIL import Image

from shards.config import PhantomConfig
from shards.encode import Encoding, Pixels, decode_image, encode_image
from shards.layout import find_patients
from shards.phantom import generate
from shards.reader import PackedData
from shards.source import read_volume
from shards.store import open_store

RESULT = Path(__file__).with_name("results") / "encodings.md"
LINKS_MB_PER_S = (10, 30, 100, 300, 1000, 3000)
"""From a share of an office's line to a local NVMe disk; a MB is 10^6 bytes."""

ENCODED = 5
"""Of so many slices one is encoded in a round: some encoders take a hundred times as long as their decoders."""


@dataclass
class Codec:
    name: str
    encode: Callable[[Pixels], bytes]
    decode: Callable[[bytes], Pixels]
    data: list[bytes] = field(default_factory=list)
    """The encoded slices."""
    times: dict[str, list[float]] = field(default_factory=dict)
    """Milliseconds a slice of each round, by what was timed."""

    @property
    def num_bytes(self) -> float:
        return sum(map(len, self.data)) / len(self.data)

    def ms(self, what: str) -> float:
        return min(self.times[what])

    def at(self, mb_per_s: float) -> float:
        """Milliseconds until a slice that comes over a link is checked and decoded."""
        return self.num_bytes / mb_per_s / 1e3 + self.ms("sha256") + self.ms("decode")


def ours(encoding: Encoding, name: str) -> Codec:
    extension = {"png": "png", "webp": "webp", "raw": "npy"}[encoding]
    return Codec(
        name, lambda image: encode_image(image, encoding), lambda data: decode_image(data, f"x.{extension}")
    )


def pillow(kind: str, name: str, **options: Any) -> Codec:
    def encode(image: Pixels) -> bytes:
        out = io.BytesIO()
        Image.fromarray(image).save(out, kind, **options)
        return out.getvalue()

    return Codec(name, encode, lambda data: np.asarray(Image.open(io.BytesIO(data), formats=[kind])))


def codecs() -> list[Codec]:
    return [
        ours("png", "`png`: ours"),
        pillow("PNG", "PNG by Pillow, level 6 (its default)", compress_level=6),
        pillow("PNG", "PNG by Pillow, level 1", compress_level=1),
        ours("webp", "`webp`: lossless, quality 40, method 3"),
        pillow("WEBP", "WebP lossless, quality 0, method 0", lossless=True, quality=0, method=0),
        pillow("WEBP", "WebP lossless, quality 80, method 4", lossless=True, quality=80, method=4),
        ours("raw", "`raw`: .npy"),
    ]


def slices(place: Path, most: int) -> list[Pixels]:
    """Up to ``most`` slices, evenly from all of a packed data set's training split or of a source's patients."""
    if (place / "manifest.json").is_file():
        split = PackedData(str(place)).training("train")
        wanted = np.linspace(0, len(split.index) - 1, min(most, len(split.index))).astype(int)
        return [split.read(int(sample))[0] for sample in wanted]
    store = open_store(str(place))
    patients, _ = find_patients(store)
    ends = np.cumsum([len(patient.slices) for patient in patients])
    wanted = np.linspace(0, ends[-1] - 1, min(most, ends[-1])).astype(int)
    owners = np.searchsorted(ends, wanted, side="right")
    found: list[Pixels] = []
    for owner in np.unique(owners):
        volume = read_volume(store, patients[owner]).image_NHWC
        found += [volume[at - ends[owner]] for at in wanted[owners == owner]]
    return found


def measure(all_codecs: Sequence[Codec], images: Sequence[Pixels], rounds: int) -> None:
    for codec in all_codecs:
        codec.data = [codec.encode(image) for image in images]
        for image, data in zip(images, codec.data, strict=True):
            np.testing.assert_array_equal(codec.decode(data), image, err_msg=codec.name)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(rounds):
            for codec in all_codecs:
                for what, ms in _times(codec, images, pool):
                    codec.times.setdefault(what, []).append(ms)


def _times(codec: Codec, images: Sequence[Pixels], pool: ThreadPoolExecutor) -> Iterator[tuple[str, float]]:
    def each(work: Callable[[], object], count: int = len(images)) -> float:
        start = time.perf_counter()
        work()
        return (time.perf_counter() - start) / count * 1e3

    def halves() -> None:
        list(
            pool.map(lambda half: [codec.decode(data) for data in half], (codec.data[::2], codec.data[1::2]))
        )

    some = images[::ENCODED]
    yield "encode", each(lambda: [codec.encode(image) for image in some], len(some))
    yield "sha256", each(lambda: [hashlib.sha256(data).digest() for data in codec.data])
    yield "decode", each(lambda: [codec.decode(data) for data in codec.data])
    yield "decode by 2 threads", each(halves)


def costs(all_codecs: Sequence[Codec]) -> str:
    columns = ("encode", "sha256", "decode", "decode by 2 threads")
    lines = [
        "| Encoding | KiB a slice | " + " | ".join(f"{column}, ms" for column in columns) + " |",
        "|---|" + "--:|" * (1 + len(columns)),
    ]
    for codec in all_codecs:
        figures = [f"{codec.num_bytes / 1024:.1f}", *(f"{codec.ms(column):.2f}" for column in columns)]
        lines.append(f"| {codec.name} | {' | '.join(figures)} |")
    return "\n".join(lines)


def links(all_codecs: Sequence[Codec]) -> str:
    lines = [
        "| Encoding | " + " | ".join(f"{link} MB/s" for link in LINKS_MB_PER_S) + " |",
        "|---|" + "--:|" * len(LINKS_MB_PER_S),
    ]
    best = {link: min(codec.at(link) for codec in all_codecs) for link in LINKS_MB_PER_S}
    for codec in all_codecs:
        figures = [(codec.at(link), codec.at(link) == best[link]) for link in LINKS_MB_PER_S]
        cells = [f"**{ms:.2f}**" if won else f"{ms:.2f}" for ms, won in figures]
        lines.append(f"| {codec.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def crossings(all_codecs: Sequence[Codec]) -> str:
    """Below which speed of the link each smaller encoding of ours is the faster one."""
    own = sorted((c for c in all_codecs if c.name.startswith("`")), key=lambda codec: codec.num_bytes)
    sentences = []
    for small, large in itertools.pairwise(own):
        dearer = small.at(float("inf")) - large.at(float("inf"))
        names = [codec.name.split(":")[0] for codec in (small, large)]
        if dearer <= 0:
            sentences.append(f"{names[0]} beats {names[1]} at any speed.")
        else:
            limit = (large.num_bytes - small.num_bytes) / dearer / 1e3
            sentences.append(f"{names[0]} beats {names[1]} below {limit:.0f} MB/s.")
    return " ".join(sentences)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?", help="a source or a packed data set; else phantoms")
    parser.add_argument("--slices", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bts-bench-") as scratch:
        place, kind = options.data, "slices of real patients"
        if place is None:
            place, kind = Path(scratch) / "phantom", "slices of generated phantoms, which are not MRI"
            generate(PhantomConfig(patients=20, size=256, min_slices=10, max_slices=10), place)
        images = slices(place, options.slices)
    all_codecs = codecs()
    measure(all_codecs, images, options.rounds)
    height, width, _ = images[0].shape
    parts = [
        "# Encodings compared",
        "Written by `benchmarks/encoding.py`, which says how it measures.",
        environment.describe(("numpy", "pillow", "isal")),
        f"- Data: {len(images)} {kind}, {height} × {width} × 3, uint8; rounds: {options.rounds}",
        "## Cost of a slice",
        costs(all_codecs),
        "## Milliseconds until a slice is there",
        "Its bytes over the link's speed, then sha256 and decoding, by one thread. Bold is the fastest at that "
        "speed. The speed is what one reader gets: a worker's share of the node's network, or of its disk.",
        links(all_codecs),
        crossings(all_codecs),
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
