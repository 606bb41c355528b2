"""The settings of the data plane: where data lies, how it is split, packed and stored.

Every field is set by YAML or ``--set section.field=value``; there are no other knobs.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A frozen part of the config that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class DataConfig(Section):
    """Where the data lies and how samples are read."""

    source: str = "data/kaggle_3m"
    """Folder in Kaggle's layout: one folder a patient, ``<folder>_<n>.tif`` with ``<folder>_<n>_mask.tif``.
    A path or ``s3://bucket/prefix``."""
    shards: str = "data/shards"
    """The packed data set: a folder or ``s3://bucket/prefix``."""
    image_size: int | None = Field(default=None, ge=16, le=4096)
    """Side in pixels that the model sees; null is the native size.  Scores are always at native size."""
    cache: Literal["auto", "none", "disk", "memory", "device"] = "auto"
    """What is kept of the samples between epochs.  ``memory``: decoded uint8 samples, once a node, shared by its
    workers.  ``device``: the same on each worker's accelerator.  ``disk``: nothing decoded, but shards fetched from
    object storage stay in ``store.cache_dir`` (with ``memory`` and ``device`` too).  ``none``: nothing is kept, and
    nothing is written to disk.  ``auto`` takes the fastest that fits, and the run's record says which."""
    window_shards: int = Field(default=8, ge=1)
    """How many shards are shuffled together: more is a better shuffle, fewer reads more sequentially.  As many
    again are fetched ahead, beyond the epoch's end too."""
    decode_threads: int = Field(default=2, ge=0)
    """Threads per worker that decode samples ahead of the step; 0 decodes within the step."""
    fetch_threads: int = Field(default=4, ge=1)
    """Shards that a worker fetches and verifies at the same time."""


class HoldoutSplit(Section):
    """Patients in three groups, stratified by institution and tumour burden; or one fold of k."""

    kind: Literal["patient"] = "patient"
    seed: int = Field(default=0, ge=0)
    train: float = Field(default=0.8, gt=0, lt=1)
    val: float = Field(default=0.1, gt=0, lt=1)
    test: float = Field(default=0.1, gt=0, lt=1)
    folds: int = Field(default=5, ge=3)
    """Number of folds, used when ``fold`` is set."""
    fold: Annotated[int, Field(ge=0)] | Literal["all"] | None = None
    """Test on this fold, validate on the next one, train on the rest; null is the 80/10/10 hold-out.  With ``all``,
    ``bts run`` does the whole job for each fold and scores every patient once, with a model that never saw it."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_shares(self)
        if isinstance(self.fold, int) and self.fold >= self.folds:
            raise ValueError(f"split.fold is {self.fold} but folds are numbered 0 to {self.folds - 1}")
        return self


class SliceSplit(Section):
    """LEAKS: every slice is dealt out at random, so that slices of one patient are in training and test alike.

    Neighbouring slices of a patient are almost the same picture, and a model that was trained on one scores well on
    the other.  It exists to measure what that is worth (``benchmarks/leak.py``); no score made with it is a result.
    """

    kind: Literal["slice"] = "slice"
    seed: int = Field(default=0, ge=0)
    train: float = Field(default=0.8, gt=0, lt=1)
    """Share of all slices, as are ``val`` and ``test``."""
    val: float = Field(default=0.1, gt=0, lt=1)
    test: float = Field(default=0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_shares(self)
        return self


class NoSplit(Section):
    """Every patient is a test patient: external validation of a trained model."""

    kind: Literal["none"] = "none"


SplitConfig = Annotated[HoldoutSplit | SliceSplit | NoSplit, Field(discriminator="kind")]


def _check_shares(split: HoldoutSplit | SliceSplit) -> None:
    total = split.train + split.val + split.test
    if abs(total - 1) > 1e-6:
        raise ValueError(f"split.train + split.val + split.test is {total:g}; they must add up to 1")


class PackConfig(Section):
    """How samples become shards."""

    encoding: Literal["png", "webp", "raw"] = "png"
    """Lossless encoding of the images.  Masks are always PNG."""
    samples_per_shard: int = Field(default=256, ge=1)
    workers: int | None = Field(default=None, ge=1)
    """Parallel packers; null is one for each CPU."""


class StoreConfig(Section):
    """How object storage is spoken to.  Endpoint and credentials come from the AWS environment."""

    attempts: int = Field(default=5, ge=1)
    """Tries in a row that may fail before it is an error.  A download that breaks off and has got on since the
    last break starts counting anew."""
    deadline_s: float = Field(default=600, gt=0)
    """Longest that one request, or one object read in several, is tried, in seconds."""
    timeout_s: float = Field(default=60, gt=0)
    """Longest silence of the server during one request, in seconds."""
    part_mib: int = Field(default=16, ge=5, le=5120)
    """Size of one part of a multipart upload, in MiB.  What is larger goes in parts."""
    upload_threads: int = Field(default=4, ge=1)
    """Parts of one object that are sent at a time; each takes its size in memory."""
    cache_dir: str | None = None
    """Node-local folder for shards fetched from ``s3://``; null is ``bts-dist`` in $XDG_CACHE_HOME or ~/.cache."""
    cache_gib: float = Field(default=50, gt=0)
    """Most disk that the shards in ``cache_dir`` take, in GiB; the least recently used go first.  Shards that are
    being read keep their space a little longer."""


class PhantomConfig(Section):
    """The generated data set of ``bts synth``."""

    patients: int = Field(default=40, ge=1)
    size: int = Field(default=128, ge=32)
    """Side of a slice in pixels."""
    min_slices: int = Field(default=14, ge=3)
    max_slices: int = Field(default=22, ge=3)
    missing: float = Field(default=0.15, ge=0, le=1)
    """Share of patients without a pre- or post-contrast sequence (FLAIR stands in for it, as in the real set)."""
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_slices < self.min_slices:
            raise ValueError(
                f"phantom.max_slices is {self.max_slices}, below phantom.min_slices {self.min_slices}"
            )
        return self
