"""Damage to the members of shards, with an index and a manifest that vouch for it."""

import io
import json
import pickle
import struct
import tarfile
import zlib
from random import Random

import numpy as np
from damage_to_bytes import Span, any_span, keep_bytes
from packed_set import Damage, PackedSet, tar_of
from PIL import Image

from shards.encode import encode_image, encode_mask, encode_meta


def png(pixels: np.ndarray, mode: str | None = None) -> bytes:
    out = io.BytesIO()
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(out, "PNG")
    return out.getvalue()


def png_of_16_bit_rgb(side: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 16, 2, 0, 0, 0)
    rows = zlib.compress(bytes(side * (1 + side * 6)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=array.dtype == object)
    return out.getvalue()


GREY = np.zeros((32, 32), np.uint8)
RGB = np.zeros((32, 32, 3), np.uint8)
IMAGES = {
    "pickle": pickle.dumps({"image": 1}),
    "pickled array": npy(np.asarray([{"a": 1}], object)),
    "array": npy(RGB),
    "empty png": png(GREY)[:8],
    "text": b"pipe:curl example.org",
    "small": encode_image(RGB[:16, :16], "png"),
    "tall": encode_image(np.zeros((64, 16, 3), np.uint8), "png"),
    "grey": png(GREY),
    "16-bit grey": png(GREY.astype(np.uint16)),
    "16-bit rgb": png_of_16_bit_rgb(32),
    "rgba": png(np.zeros((32, 32, 4), np.uint8)),
    "palette": png(RGB, "P"),
    "one bit": encode_mask(GREY),
    "webp": encode_image(RGB, "webp"),
    "oversized": encode_image(RGB, "png") + bytes(9000),
    "bomb": encode_image(np.zeros((6000, 6000, 3), np.uint8), "png")[:7000],
}
MASKS = {
    "pickle": pickle.dumps({"mask": 1}),
    "array": npy(GREY),
    "small": encode_mask(GREY[:16]),
    "wide": encode_mask(np.zeros((16, 64), np.uint8)),
    "8-bit": png(GREY),
    "16-bit": png(GREY.astype(np.uint16)),
    "rgb": encode_image(RGB, "png"),
    "oversized": encode_mask(GREY) + bytes(5000),
}
METAS = {
    "pickle": pickle.dumps({"patient": 1}),
    "no json": b"{",
    "no object": b"[]",
    "no fields": b"{}",
    "nan": b'{"mean": NaN}',
    "twice": b'{"slice": 1, "slice": 1}',
}


def replaced(suffix: str, payload: bytes) -> Damage:
    """Another payload for a member, with index and manifest that agree."""

    def damage(random: Random, data: PackedSet) -> tuple[str, ...]:
        span = any_span(random, data, suffix)
        data.put_member(span.shard, span.name, payload)
        return span.shard, span.name.partition(".")[0]

    return damage


def crop(random: Random, data: PackedSet) -> tuple[str, ...]:
    """The first half of a member's payload."""
    span = any_span(random, data, ".png")
    payload = dict(data.members(span.shard))[span.name]
    data.put_member(span.shard, span.name, payload[: random.randrange(1, len(payload))])
    return span.shard, span.name.partition(".")[0]


ODD_NAMES = (
    "../{}", "/{}", "/etc/passwd", "a/../{}", "a/{}", "./{}", "..", "pipe:curl example.org", "s3://bucket/{}",
    "http://example.org/{}", "a\\{}", "a\n{}", "\x1b{}", "{}.pickle", "{}.pyd", "{}.pt", "run.sh", "x_0001.image.png",
)  # fmt: skip


def renamed(random: Random, data: PackedSet) -> tuple[str, ...]:
    span = any_span(random, data)
    data.put_member(
        span.shard, span.name, dict(data.members(span.shard))[span.name], new_name=odd_name(random, span)
    )
    return span.shard, span.name.partition(".")[0]


def odd_name(random: Random, span: Span) -> str:
    return random.choice(ODD_NAMES).format(span.name)


def retyped(random: Random, data: PackedSet) -> tuple[str, ...]:
    """A link, device, folder or extension in the place of a regular file."""
    span = any_span(random, data)
    info = tarfile.TarInfo(span.name)
    info.type = random.choice([b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"x", b"g", b"L", b"K", b"S"])
    info.linkname, info.size = random.choice(["/etc/passwd", "", "../x"]), span.size
    header = info.tobuf(tarfile.USTAR_FORMAT)
    if len(header) != 512:  # not for folders, whose names end with a slash, nor links, which have no size
        header = header[:512]
    whole = data.files[span.shard]
    data.put_shard(span.shard, whole[: span.start] + header + whole[span.payload :])
    return span.shard, span.name.partition(".")[0]


def extra_member(random: Random, data: PackedSet) -> tuple[str, ...]:
    shard = random.choice(data.shards)
    members = data.members(shard)
    extra = random.choice(["run.sh", "x.pickle", "../x.json", members[0][0], members[-1][0]])
    members.insert(random.randrange(len(members) + 1), (extra, pickle.dumps([1])))
    data.put_members(shard, members)
    return (shard,)


def member_dropped(random: Random, data: PackedSet) -> tuple[str, ...]:
    span = any_span(random, data)
    data.put_members(span.shard, [m for m in data.members(span.shard) if m[0] != span.name])
    return (span.shard,)


def members_swapped(random: Random, data: PackedSet) -> tuple[str, ...]:
    shard = random.choice(data.shards)
    members = data.members(shard)
    one, other = random.sample(range(len(members)), 2)
    members[one], members[other] = members[other], members[one]
    data.put_members(shard, members)
    return (shard,)


def surplus_hidden_behind_the_end(random: Random, data: PackedSet) -> tuple[str, ...]:
    shard = random.choice(data.shards)
    keep_bytes(random, data, shard, data.files[shard] + tar_of([("run.sh", b"#!")]))
    return (shard,)


def gap_before_a_member(random: Random, data: PackedSet) -> tuple[str, ...]:
    """Blocks between two members that index and manifest take into account."""
    span = any_span(random, data)
    whole = data.files[span.shard]
    gap = random.choice([bytes(512), random.randbytes(512), tar_of([("x.txt", b"")])[:512]])
    rows = data.rows()
    for row in rows:
        for part in ("image", "mask", "meta"):
            if row["shard"] == span.shard and row[f"{part}_offset"] >= span.payload:
                row[f"{part}_offset"] += len(gap)
    data.put_rows(rows)
    data.put_shard(span.shard, whole[: span.start] + gap + whole[span.start :])
    return (span.shard,)


def meta_says_otherwise(random: Random, data: PackedSet) -> tuple[str, ...]:
    span = any_span(random, data, ".json")
    meta = json.loads(dict(data.members(span.shard))[span.name])
    name = random.choice(sorted(meta))
    change: dict[str, object] = {
        "patient": "PHANTOM_AX_0099",
        "slice": 77,
        "num_slices": 77,
        "institution": "ZZ",
        "tumour_pixels": meta["tumour_pixels"] + 1,
        "missing": ["flair"],
        "mean": [meta["mean"][0] + 0.01, *meta["mean"][1:]],
        "std": [1.0, 2.0],
    }
    data.put_member(span.shard, span.name, encode_meta(meta | {name: change[name]}))
    return span.shard, span.name, name


LIES: dict[str, Damage] = {
    **{f"image {kind}": replaced(".image.png", payload) for kind, payload in IMAGES.items()},
    **{f"mask {kind}": replaced(".mask.png", payload) for kind, payload in MASKS.items()},
    "oversized json": replaced(".json", b"{" + b" " * 5000 + b"}"),
    "payload cropped": crop,
    "member renamed": renamed,
    "member retyped": retyped,
    "member added": extra_member,
    "member dropped": member_dropped,
    "members swapped": members_swapped,
    "member behind the end": surplus_hidden_behind_the_end,
    "gap": gap_before_a_member,
}
HIDDEN: dict[str, Damage] = {
    **{f"json {kind}": replaced(".json", payload) for kind, payload in METAS.items()},
    "json says otherwise": meta_says_otherwise,
}
