"""How a model's probabilities become a mask.  It is chosen on validation patients and recorded beside the checkpoint.

Scoring, prediction and export all read it from here, so that none of them predicts in a way of its own.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from bts_dist.components import Keep, keep_components
from bts_dist.counts import Mask
from shards.errors import InputError
from shards.store import MissingObject, ObjectStore

FOLDER = "inference"

_KEEP: TypeAdapter[Keep] = TypeAdapter(Keep)


@dataclass(frozen=True)
class Member:
    """A further checkpoint whose logits are averaged with the model's own."""

    uri: str
    """Where it lies; of the same run without the run."""
    id: str
    """The hash of its list of files when it was chosen."""


@dataclass(frozen=True)
class Inference:
    """A way to predict."""

    threshold: float
    """A voxel is tumour where its probability is above this."""
    mirror: bool
    """Whether the prediction of the left-right flipped slice is averaged in."""
    keep: Keep = "all"
    """Which components of the mask are kept."""
    members: tuple[Member, ...] = ()
    chosen: dict[str, Any] | None = field(default=None, compare=False)
    """What was tried on the validation patients and what it gave, in plain values; None where nothing was."""

    def mask(self, probability_NHW: NDArray[np.float32]) -> Mask:
        """The mask of a whole volume's probabilities, (slices, H, W)."""
        return keep_components(probability_NHW > self.threshold, self.keep)

    def describe(self) -> str:
        """In words, for people."""
        words = [f"threshold {self.threshold:g}", "mirrored" if self.mirror else "not mirrored"]
        if self.members:
            words.append(f"mean of {len(self.members) + 1} checkpoints")
        if self.keep != "all":
            words.append(_kept(self.keep))
        if self.chosen is None:
            words.append("as validated")
        return ", ".join(words)

    def to_json(self) -> dict[str, Any]:
        """As plain values, what was tried included."""
        return {
            "threshold": self.threshold,
            "mirror": self.mirror,
            "components": self.keep,
            "members": [asdict(member) for member in self.members],
            **(self.chosen or {}),
        }


def describe_all(ways: Sequence[Inference]) -> str:
    """The ways of several models, at least one, in words: what they share, and how far they differ."""
    told = sorted({way.describe() for way in ways})
    if len(told) == 1:
        return told[0]
    low, high = (f(way.threshold for way in ways) for f in (min, max))
    words = [f"threshold {low:g}" if low == high else f"thresholds {low:g} – {high:g}"]
    # In the order of the words of one model; what all of them do needs no number.
    words += _how_many("mirrored", sum(way.mirror for way in ways), len(ways)) or ["not mirrored"]
    fewest, most = (f(len(way.members) + 1 for way in ways) for f in (min, max))
    if most > 1:
        words.append(f"mean of {fewest if fewest == most else f'{fewest} to {most}'} checkpoints")
    for keep in dict.fromkeys(way.keep for way in ways if way.keep != "all"):
        words += _how_many(_kept(keep), sum(way.keep == keep for way in ways), len(ways))
    words += _how_many("as validated", sum(way.chosen is None for way in ways), len(ways))
    return ", ".join(words)


def write_inference(run: ObjectStore, name: str, checkpoint_id: str, found: Inference) -> None:
    """Record how the checkpoint ``name`` predicts; ``checkpoint_id`` is the hash of its ``files.json``."""
    record = {"checkpoint": name, "checkpoint_id": checkpoint_id, **found.to_json()}
    run.put(_key(name), (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())


def inference_bytes(run: ObjectStore, name: str) -> bytes:
    """The record of a checkpoint, and nothing where there is none."""
    try:
        return run.get(_key(name))
    except MissingObject:
        return b""


def read_inference(run: ObjectStore, name: str, checkpoint_id: str) -> Inference | None:
    """What was chosen for a checkpoint; None where nothing was.

    Raises:
        InputError: the record is damaged, or of another checkpoint of that name.
    """
    data = inference_bytes(run, name)
    if not data:
        return None
    remedy = "give the run's `bts train` command again, which chooses anew"
    try:
        record = json.loads(data)
        of = record.pop("checkpoint_id")
        del record["checkpoint"]
        found = Inference(
            float(record.pop("threshold")),
            bool(record.pop("mirror")),
            _KEEP.validate_python(record.pop("components"), strict=True),
            tuple(Member(**member) for member in record.pop("members")),
            record,
        )
        for field_ in ("rows", "choices", "ensemble"):
            record[field_]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{run.uri}/{_key(name)} is damaged ({error!r}); delete it and {remedy}") from error
    if of != checkpoint_id:
        raise InputError(f"{run.uri}/{_key(name)} is of another checkpoint than {name} is now; {remedy}")
    return found


def _kept(keep: Keep) -> str:
    return "largest component only" if keep == "largest" else f"components of {keep} voxels or more"


def _how_many(words: str, some: int, total: int) -> list[str]:
    """What all do, or some, or nobody."""
    if not some:
        return []
    return [words if some == total else f"{words} in {some} of {total}"]


def _key(name: str) -> str:
    return f"{FOLDER}/{name}.json"
