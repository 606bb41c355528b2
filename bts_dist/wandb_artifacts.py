"""What a run used and made, as W&B's artifacts: data set, model, score.

All are references: W&B keeps where a file lies, its size and its sha256, and the file stays where it is.  The hashes
are those of our own manifests, so that neither W&B nor its storage handlers open a file, ask a bucket or look for
credentials.  An artifact's version follows from the hashes, so the same content is the same version whichever run
names it, however late its record is uploaded.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bts_dist import checkpoint
from bts_dist.wandb_process import limited
from shards.manifest import INDEX, MANIFEST, load_manifest
from shards.store import LocalStore, ObjectStore, join_uri


@dataclass(frozen=True)
class FileReference:
    """A file where it lies."""

    name: str
    """Path within the artifact."""
    uri: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Description:
    """An artifact, before W&B knows it."""

    name: str
    kind: str
    files: Sequence[FileReference]
    facts: dict[str, Any]


class Reference(Protocol):
    def describe(self) -> Description:
        """Look up hashes and sizes.  Raises ``MissingObject`` where a file is gone."""


@dataclass(frozen=True)
class DataReference:
    """A packed data set: its manifest and index, which vouch for every shard."""

    store: ObjectStore

    def describe(self) -> Description:
        manifest = load_manifest(self.store)
        splits = {split: len(patients) for split, patients in manifest.patients.items()}
        facts = {
            "data id": manifest.data_id,
            "source fingerprint": manifest.provenance.source_fingerprint,
            "patients": splits,
            "slices": {split: manifest.num_samples(split) for split in manifest.patients},
            "shards": len(manifest.shards),
            "bytes": sum(shard.bytes for shard in manifest.shards),
        }
        files = [_small_file(self.store, name) for name in (MANIFEST, INDEX)]
        return Description(f"data-{manifest.data_id}", "dataset", files, facts)


@dataclass(frozen=True)
class ModelReference:
    """A checkpoint: safetensors and JSON, with the hashes of its own list."""

    run: ObjectStore
    wandb_id: str
    name: str
    """Of the checkpoint."""

    def describe(self) -> Description:
        prefix = f"{checkpoint.FOLDER}/{self.name}/"
        listed: dict[str, str] = json.loads(self.run.get(prefix + checkpoint.FILES))
        sizes = {entry.key: entry.size for entry in self.run.list(prefix)}
        files = [
            FileReference(name, _uri(self.run, prefix + name), sizes[prefix + name], sha256)
            for name, sha256 in sorted(listed.items())
        ]
        facts = {"checkpoint": self.name, "step": checkpoint.step_of(self.name)}
        return Description(f"model-{self.wandb_id}", "model", files, facts)


@dataclass(frozen=True)
class ScoreReference:
    """A score: ``score.json`` and the table of patients."""

    run: ObjectStore
    wandb_id: str
    folder: str

    def describe(self) -> Description:
        files = [_small_file(self.run, f"{self.folder}/{name}") for name in ("score.json", "patients.csv")]
        return Description(f"{self.folder}-{self.wandb_id}", "score", files, {})


def use_artifact(wandb_run: Any, reference: Reference) -> None:
    """Say that a run used something; W&B comes to know of it if it did not."""
    _publish(wandb_run, reference.describe(), (), used=True)


def log_artifact(wandb_run: Any, reference: Reference, aliases: Sequence[str] = ()) -> None:
    """Say that a run made something."""
    _publish(wandb_run, reference.describe(), aliases, used=False)


def _publish(wandb_run: Any, description: Description, aliases: Sequence[str], *, used: bool) -> None:
    """Put an artifact into the run's log, from where W&B's process sends it, or `bts sync` later.

    W&B's own methods do the same offline.  Online they first ask the server, wait for it and tell it who asks; and what
    they say is not in the log, so that a connection that broke would cost the lineage.

    Raises:
        wandb.Error: this version of W&B's has no such call.
    """
    import wandb

    try:
        artifact = _artifact(description)
        artifact.finalize()
        with limited():
            wandb_run._interface.publish_artifact(
                wandb_run, artifact, [*aliases, "latest"], is_user_created=True, use_after_commit=used
            )
    except (ImportError, AttributeError, TypeError) as error:  # nothing of this is promised by W&B
        raise wandb.Error(
            f"wandb {wandb.__version__} takes artifacts in a way that is not known here: {error}; install wandb 0.31"
        ) from error


def _artifact(description: Description) -> Any:
    import wandb
    from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry

    artifact = wandb.Artifact(description.name, type=description.kind, metadata=description.facts)
    for file in description.files:
        # Not add_reference: it would read the file or ask the bucket again for what is known, and look for
        # credentials while training waits.
        artifact.manifest.add_entry(
            ArtifactManifestEntry(path=file.name, ref=file.uri, digest=file.sha256, size=file.size)
        )
    return artifact


def _small_file(store: ObjectStore, key: str) -> FileReference:
    data = store.get(key)
    name = key.rpartition("/")[2]
    return FileReference(name, _uri(store, key), len(data), hashlib.sha256(data).hexdigest())


def _uri(store: ObjectStore, key: str) -> str:
    if isinstance(store, LocalStore):
        return Path(store.root, key).resolve().as_uri()
    return join_uri(store.uri, key)
