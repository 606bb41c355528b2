"""Damage to the bytes of a packed data set's files: by accident, or with a shard's sha256 made to fit."""

import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random

import numpy as np
from packed_set import Damage, PackedSet

from shards.manifest import INDEX, MANIFEST

Spoil = Callable[[Random, bytes], bytes]


def flip(random: Random, data: bytes) -> bytes:
    at = random.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]


def cut_off(random: Random, data: bytes) -> bytes:
    return data[: random.randrange(len(data))]


def cut_out(random: Random, data: bytes) -> bytes:
    at = random.randrange(len(data))
    return data[:at] + data[at + random.choice([1, 7, 512, 1024]) :]


def insert(random: Random, data: bytes) -> bytes:
    at = random.randrange(len(data) + 1)
    return data[:at] + random.randbytes(random.choice([1, 7, 512])) + data[at:]


def scramble(random: Random, data: bytes) -> bytes:
    at = random.randrange(len(data))
    length = min(random.choice([1, 16, 600]), len(data) - at)
    return data[:at] + random.randbytes(length) + data[at + length :]


def zero(random: Random, data: bytes) -> bytes:
    at = random.randrange(len(data))
    length = min(random.choice([16, 512, 4096]), len(data) - at)
    return data[:at] + bytes(length) + data[at + length :]


def swap_blocks(random: Random, data: bytes) -> bytes:
    size = 512 if len(data) >= 4096 else 64
    blocks = [data[at : at + size] for at in range(0, len(data), size)]
    one, other = random.sample(range(len(blocks)), 2)
    blocks[one], blocks[other] = blocks[other], blocks[one]
    return b"".join(blocks)


BYTES = (flip, cut_off, cut_out, insert, scramble, zero, swap_blocks)


def spoilt(how: Spoil, random: Random, data: bytes) -> bytes:
    """Other bytes than before: a range of zeros, for one, may have been zeros already."""
    while (found := how(random, data)) == data:
        pass
    return found


def accident(how: Spoil, file: str) -> Damage:
    def damage(random: Random, data: PackedSet) -> tuple[str, ...]:
        key = random.choice(data.shards) if file == "shard" else file
        data.files[key] = spoilt(how, random, data.files[key])
        return (key,)

    return damage


@dataclass(frozen=True)
class Span:
    """A member in its shard: header, payload and padding."""

    shard: str
    name: str
    start: int
    payload: int
    size: int
    stop: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", self.payload + self.size + -self.size % 512)


def spans(data: PackedSet, shard: str) -> list[Span]:
    return _spans(shard, data.files[shard])


@lru_cache
def _spans(shard: str, data: bytes) -> list[Span]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [Span(shard, m.name, m.offset, m.offset_data, m.size) for m in tar.getmembers()]


def any_span(random: Random, data: PackedSet, suffix: str = "") -> Span:
    found = [span for shard in data.shards for span in spans(data, shard) if span.name.endswith(suffix)]
    return random.choice(found)


def cut_place(where: str) -> Callable[[Random, Span], int]:
    return {
        "at a sample": lambda random, span: span.start,
        "in a header": lambda random, span: span.start + random.randrange(1, 512),
        "in a payload": lambda random, span: span.payload + random.randrange(1, span.size),
        "before the end": lambda random, span: span.stop,
    }[where]


def cut_shard(where: str, *, vouched: bool, ended: bool = False) -> Damage:
    """A shard that stops early, perhaps with the blocks that end a tar."""

    def damage(random: Random, data: PackedSet) -> tuple[str, ...]:
        span = any_span(random, data, ".image.png")
        rest = data.files[span.shard][: cut_place(where)(random, span)] + bytes(1024 if ended else 0)
        if vouched:
            keep_bytes(random, data, span.shard, rest)
        else:
            data.files[span.shard] = rest
        return (span.shard,)

    return damage


def keep_bytes(random: Random, data: PackedSet, shard: str, harmed: bytes) -> None:
    """Vouch for a harmed shard by sha256, and for its length or not."""
    manifest = data.manifest()
    data.put_shard(shard, harmed)
    if random.random() < 0.5:
        lengths = {record["name"]: record["bytes"] for record in manifest["shards"]}
        manifest = data.manifest()
        for record in manifest["shards"]:
            record["bytes"] = lengths[record["name"]]
        data.put_manifest(manifest)


def vouched_bytes(how: Spoil) -> Damage:
    """Harm to a shard of which some is not in a mask or JSON: those bytes, too, may be another truth."""

    def damage(random: Random, data: PackedSet) -> tuple[str, ...]:
        shard = random.choice(data.shards)
        whole = data.files[shard]
        known = np.ones(len(whole), bool)
        for span in spans(data, shard):
            if not span.name.endswith(".image.png"):
                known[span.payload : span.payload + span.size] = False
        while True:
            harmed = spoilt(how, random, whole)
            changed = (
                np.frombuffer(harmed, np.uint8) != np.frombuffer(whole, np.uint8)
                if len(harmed) == len(whole)
                else known
            )
            if (changed & known).any():
                break
        keep_bytes(random, data, shard, harmed)
        return (shard,)

    return damage


def missing_file(random: Random, data: PackedSet) -> tuple[str, ...]:
    key = random.choice(sorted(data.files))
    del data.files[key]
    return (key,)


def shards_swapped(random: Random, data: PackedSet) -> tuple[str, ...]:
    one, other = random.sample(data.shards, 2)
    data.files[one], data.files[other] = data.files[other], data.files[one]
    return ()


def shards_swapped_and_vouched_for(random: Random, data: PackedSet) -> tuple[str, ...]:
    one, other = random.sample(data.shards, 2)
    first, second = data.files[one], data.files[other]
    data.put_shard(one, second)
    data.put_shard(other, first)
    return ()


def stray_shard(random: Random, data: PackedSet) -> tuple[str, ...]:
    key = random.choice(["shards/train-000099.tar", "shards/x.pickle", "shards/more/val-000000.tar"])
    data.files[key] = random.choice(list(data.files.values()))
    return (key,)


PLACES = ("at a sample", "in a header", "in a payload", "before the end")

ACCIDENTS: dict[str, Damage] = {
    **{f"{how.__name__} {file}": accident(how, file) for how in BYTES for file in ("shard", INDEX, MANIFEST)},
    **{f"cut {place}": cut_shard(place, vouched=False) for place in PLACES},
    **{f"cut {place}, ended": cut_shard(place, vouched=False, ended=True) for place in PLACES[:3]},
    "missing file": missing_file,
    "shards swapped": shards_swapped,
}
LIES: dict[str, Damage] = {
    **{f"{how.__name__} shard": vouched_bytes(how) for how in BYTES},
    **{f"cut {place}": cut_shard(place, vouched=True) for place in PLACES},
    **{f"cut {place}, ended": cut_shard(place, vouched=True, ended=True) for place in PLACES[:3]},
    "shards exchanged": shards_swapped_and_vouched_for,
}
HIDDEN: dict[str, Damage] = {"stray shard": stray_shard}
