"""Damage to the manifest, which is sealed again."""

from collections.abc import Callable
from random import Random
from typing import Any

from packed_set import Damage, PackedSet

from shards.manifest import MANIFEST


def manifest_edited(change: Callable[[Random, dict[str, Any]], object], *names: str) -> Damage:
    def damage(random: Random, data: PackedSet) -> tuple[str, ...]:
        manifest = data.manifest()
        change(random, manifest)
        data.put_manifest(manifest)
        return names

    return damage


def field_set(name: str, *values: object) -> Damage:
    def change(random: Random, manifest: dict[str, Any]) -> None:
        manifest[name] = random.choice([value for value in values if value != manifest[name]])

    return manifest_edited(change)


def record_edited(name: str, *values: object) -> Damage:
    def damage(random: Random, data: PackedSet) -> tuple[str, ...]:
        manifest = data.manifest()
        record = random.choice(manifest["shards"])
        shard = record["name"]
        value = random.choice([value for value in values if value != record[name]])
        record[name] = record[name] + value if isinstance(value, int) else value
        data.put_manifest(manifest)
        return () if name == "name" else (shard,)

    return damage


def shard_list(random: Random, manifest: dict[str, Any]) -> None:
    """Records of shards dropped, repeated, swapped or reversed."""
    shards = manifest["shards"]
    one, other = random.sample(range(len(shards)), 2)
    changes: list[Callable[[], object]] = [
        lambda: shards.pop(one),
        lambda: shards.insert(other, shards[one]),
        lambda: shards.__setitem__(slice(None), [*shards[one:], *shards[:one]] if one else shards[::-1]),
        lambda: shards.append(dict(shards[one], name=f"shards/test-{random.randrange(100):06d}.tar")),
        shards.clear,
    ]
    random.choice(changes)()


def patients(random: Random, manifest: dict[str, Any]) -> None:
    """Patients moved, dropped, invented, or in two splits at once."""
    lists = manifest["patients"]
    source, target = random.sample(["train", "val", "test"], 2)
    patient = random.choice(lists[source])
    changes: list[Callable[[], object]] = [
        lambda: (lists[source].remove(patient), lists[target].append(patient)),
        lambda: lists[source].remove(patient),
        lambda: lists[target].append(patient),
        lambda: lists[source].append(patient),
        lambda: lists[target].append(random.choice(["PHANTOM_AX_0099", "../x", "pipe:x", "a.b", "", "é", 7])),
        lambda: lists.pop(source),
        lambda: lists.update({"all": lists.pop(source)}),
    ]
    random.choice(changes)()


def any_field_of_another_type(random: Random, manifest: dict[str, Any]) -> None:
    place: Any = random.choice([manifest, random.choice(manifest["shards"]), manifest["provenance"]])
    name = random.choice(sorted(place.keys() - {"source"}))  # where any text may be true
    value = random.choice([None, [], {}, -1, 1.5, True, "", "1", {"a": 1}, ["a"], 10**400])
    place[name] = value if value != place[name] else {"b": 2}


def any_field_dropped_or_added(random: Random, manifest: dict[str, Any]) -> None:
    place: Any = random.choice([manifest, random.choice(manifest["shards"]), manifest["provenance"]])
    if random.random() < 0.5:
        del place[random.choice(sorted(place.keys() - {"format"}))]
    else:
        place[random.choice(["surprise", "url", "__reduce__"])] = "pipe:x"


def manifest_text(random: Random, data: PackedSet) -> tuple[str, ...]:
    """A manifest that no JSON reader may take as it is."""
    text = data.files[MANIFEST]
    value = random.choice(
        [b"NaN", b"Infinity", b"1e999", b"9" * 5000, b"[" * 50_000, b'"\xff"', b'32, "height": 32']
    )
    data.files[MANIFEST] = text.replace(b'"height": 32', b'"height": ' + value)
    return (MANIFEST,)


def another_origin(random: Random, manifest: dict[str, Any]) -> None:
    origin = manifest["provenance"]
    changes: list[Callable[[], object]] = [
        lambda: manifest.update(data_id=f"{random.getrandbits(64):016x}"),
        lambda: origin.update(source_fingerprint=f"{random.getrandbits(256):064x}"),
        lambda: origin["split"].update(seed=random.randrange(1, 100)),
        lambda: origin["pack"].update(samples_per_shard=6),
    ]
    random.choice(changes)()


LIES: dict[str, Damage] = {
    "height": field_set("height", 0, -1, 33, 64, 20000, "32", 32.5, None),
    "width": field_set("width", 0, 31, 16, 10**30, True, [32]),
    "suffix": field_set("image_suffix", "image.npy", "image.webp", "image.pickle", "../x", "json", ""),
    "format": field_set("format", "bts-shards/2", "", None),
    "index_sha256": field_set("index_sha256", "0" * 64, "", "A" * 64, None),
    "shard's name": record_edited(
        "name", "pipe:curl example.org", "s3://b/x.tar", "/etc/passwd", "shards/../x.tar", "shards/train-1.tar", "",
        "shards/val-000009.tar", "file:///etc/passwd", "shards/train-000000.tar.gz", "shards/train-000000.tar\n",
    ),
    "shard's samples": record_edited("samples", 1, -1, 100, -100, 2**31, 2**62),
    "shard's bytes": record_edited("bytes", 1, -1, 512, -512, 10240, 2**62),
    "shard's sha256": record_edited("sha256", "0" * 64, "f" * 64, "", "A" * 64),
    "shard's split": record_edited("split", "train", "val", "test", "all"),
    "shard list": manifest_edited(shard_list),
    "patients": manifest_edited(patients),
    "field's type": manifest_edited(any_field_of_another_type, MANIFEST),
    "field's presence": manifest_edited(any_field_dropped_or_added, MANIFEST),
    "manifest's text": manifest_text,
}  # fmt: skip
HIDDEN: dict[str, Damage] = {"origin": manifest_edited(another_origin, MANIFEST, "data_id")}
