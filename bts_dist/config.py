"""The settings of training, scoring, tracking, tuning and the cluster, and the one config that holds them all.

``tune`` and ``cluster`` are plain data here, so that a checkpoint's config reads without Ray.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from shards.config import (
    DataConfig,
    HoldoutSplit,
    PackConfig,
    PhantomConfig,
    Section,
    SplitConfig,
    StoreConfig,
)


class UNetConfig(Section):
    """A plain convolutional UNet (Ronneberger et al. 2015) with the choices that matter."""

    kind: Literal["unet"] = "unet"
    features: int = Field(default=32, ge=1)
    """Channels of the first level; doubled at each level down to ``max_features``."""
    depth: int = Field(default=5, ge=2, le=8)
    """Number of resolution levels; the image side must divide by ``2 ** (depth - 1)``."""
    max_features: int = Field(default=512, ge=1)
    norm: Literal["batch", "instance", "group"] = "batch"
    """``batch`` is synchronised over ranks on CUDA only; ``group`` gives the same model for every world size."""
    deep_supervision: bool = True
    """Also train the coarser decoder levels, with halving weights (as nnU-Net does)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)


ModelConfig = UNetConfig


class BceDiceLoss(Section):
    """Binary cross-entropy plus soft Dice over the global batch."""

    kind: Literal["bce_dice"] = "bce_dice"
    bce: float = Field(default=1.0, ge=0)
    dice: float = Field(default=1.0, ge=0)
    smooth: float = Field(default=1.0, gt=0)
    """Added to the Dice ratio's both sides, in pixels."""


class OptimConfig(Section):
    kind: Literal["adam", "adamw"] = "adam"
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate, reached where the schedule's factor is 1."""
    weight_decay: float = Field(default=0.0, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    grad_clip: float | None = Field(default=None, gt=0)
    """Largest global gradient norm; null leaves gradients as they are."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay per step of the weights' exponential moving average, which is then what is validated and scored."""


class ConstantSchedule(Section):
    kind: Literal["constant"] = "constant"


class StepSchedule(Section):
    kind: Literal["step"] = "step"
    every_epochs: float = Field(default=10, gt=0)
    factor: float = Field(default=0.1, gt=0, le=1)


class CosineSchedule(Section):
    kind: Literal["cosine"] = "cosine"
    warmup_epochs: float = Field(default=1.0, ge=0)
    final: float = Field(default=0.0, ge=0, le=1)
    """Last factor of the learning rate."""


class OneCycleSchedule(Section):
    kind: Literal["one_cycle"] = "one_cycle"
    warmup: float = Field(default=0.3, gt=0, lt=1)
    """Share of the training spent rising to the peak."""
    start: float = Field(default=0.04, gt=0, le=1)
    final: float = Field(default=1e-4, ge=0, le=1)


class PlateauSchedule(Section):
    kind: Literal["plateau"] = "plateau"
    patience: int = Field(default=3, ge=0)
    """Epochs without a better ``val/dice/patient`` before the rate falls."""
    factor: float = Field(default=0.5, gt=0, lt=1)
    floor: float = Field(default=1e-3, ge=0, le=1)


class PolynomialSchedule(Section):
    kind: Literal["polynomial"] = "polynomial"
    power: float = Field(default=0.9, gt=0)
    warmup_epochs: float = Field(default=0.0, ge=0)


ScheduleConfig = Annotated[
    ConstantSchedule
    | StepSchedule
    | CosineSchedule
    | OneCycleSchedule
    | PlateauSchedule
    | PolynomialSchedule,
    Field(discriminator="kind"),
]


class AugmentConfig(Section):
    """Random changes of training samples, seeded by (seed, epoch, sample).  A probability of 0 turns one off."""

    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a left-right flip."""
    flip_vertical: float = Field(default=0.0, ge=0, le=1)
    """Probability of an up-down flip."""
    affine: float = Field(default=0.7, ge=0, le=1)
    rotate_deg: float = Field(default=20.0, ge=0, le=180)
    scale: float = Field(default=0.2, ge=0, lt=1)
    """Zoom between ``1 - scale`` and ``1 + scale``."""
    translate: float = Field(default=0.08, ge=0, lt=1)
    """Largest shift, as a share of the side."""
    elastic: float = Field(default=0.3, ge=0, le=1)
    elastic_shift: float = Field(default=0.04, ge=0, lt=1)
    """Standard deviation of the coarse displacement field, as a share of the side."""
    intensity: float = Field(default=0.7, ge=0, le=1)
    brightness: float = Field(default=0.2, ge=0)
    """Standard deviation of the shift, in units of the volume's standard deviation."""
    contrast: float = Field(default=0.25, ge=0, lt=1)
    gamma: float = Field(default=0.3, ge=0, lt=1)
    noise: float = Field(default=0.2, ge=0, le=1)
    noise_std: float = Field(default=0.15, ge=0)
    drop_sequence: float = Field(default=0.1, ge=0, le=1)
    """Probability that FLAIR replaces the pre- or post-contrast sequence, as in patients who lack one."""


class TrainConfig(Section):
    epochs: int = Field(default=30, ge=1)
    global_batch: int = Field(default=16, ge=1)
    """Samples per optimizer step over all workers, whatever their number."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Most samples in one forward pass on a worker; the rest of its part is accumulated.  null is all at once.  With
    ``deterministic``, whose passes are of one sample, a larger part of the batch is passed forward twice."""
    seed: int = Field(default=0, ge=0)
    deterministic: bool = False
    """The same bits for any number of workers of one kind: samples go through the network one by one, and their
    gradients are added up in the order of the global batch.  Slow; needs ``model.norm`` other than ``batch``, and
    uses one CPU thread a worker unless ``train.threads`` says otherwise."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Of the network's activations; weights, their gradients and the loss are float32 always.  ``fp16`` is for GPUs
    without bf16 (T4, V100): the loss is scaled so that small gradients survive, and a step whose scaled gradient
    overflows is skipped."""
    channels_last: bool = True
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of one worker; null is its share of its node's CPUs."""
    early_stop: int | None = Field(default=None, ge=1)
    """Stop after this many epochs without a better ``val/dice/patient``; null trains all epochs."""
    checkpoint_steps: int | None = Field(default=None, ge=1)
    """Save also within an epoch, each time so many steps are done; null saves after each epoch's validation only."""
    checkpoint_minutes: float | None = Field(default=1.0, gt=0)
    """Save also within an epoch, once so many minutes have passed since the last time: what a lost worker costs at
    most.  null does not."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints kept; the best one is kept as well."""
    log_every: int = Field(default=10, ge=1)
    """Steps between two rows of step metrics."""


class ScoreConfig(Section):
    batch: int = Field(default=32, ge=1)
    mirror: bool = True
    """Average the prediction with that of the left-right flipped slice, in the validation after each epoch.  Scoring
    does as ``choices`` has found; without ``mirror`` among them as validation did."""
    choices: tuple[Literal["mirror", "ensemble", "threshold", "components"], ...] = (
        "mirror",
        "ensemble",
        "threshold",
        "components",
    )
    """What is chosen on the validation patients when training has ended, for scoring, prediction and export: mirroring,
    averaging several checkpoints, the threshold, dropping small components or all but the largest.  What is left out
    stays as validation had it."""
    ensemble: tuple[str, ...] = ()
    """Further runs trained on the same data set, with other seeds say, whose best checkpoints may be averaged in."""
    bootstrap: int = Field(default=2000, ge=100)
    """Resamples of patients behind each 95 % interval."""
    tolerance_px: float = Field(default=2.0, ge=0)
    """Distance within which two surfaces agree, for surface Dice, where some patient's spacing is not known."""
    tolerance_mm: float = Field(default=2.0, ge=0)
    """The same in millimetres, where every patient's spacing is known."""
    seed: int = Field(default=0, ge=0)


class TrackConfig(Section):
    wandb: Literal["offline", "online", "disabled"] = "offline"
    """``offline`` keeps W&B's record in the run's folder, where ``bts sync`` finds it.  ``online`` records live, and
    offline where the server does not answer."""
    project: str = "bts-dist"
    group: str | None = None
    """W&B group of the run; null takes the run's name, and a search or a set of folds sets its own."""
    tags: tuple[str, ...] = ()
    """W&B tags of the run."""
    job_type: str = "train"
    """W&B job type of the training; a search's trials are ``trial``, other stages ``pack``, ``tune`` and ``score``."""
    pseudonymise: bool = True
    """Whether W&B gets keyed hashes in place of patients' names; key in ``BTS_PSEUDONYM_KEY``, or drawn by the run."""
    overlays: int = Field(default=6, ge=0)
    """Validation slices whose prediction is drawn each time an epoch is the best so far."""


class TuneConfig(Section):
    trials: int = Field(default=0, ge=0)
    """Trials of the search; with 0 ``bts run`` trains the config as it is.  More of them later go on from those that
    there are."""
    epochs: int = Field(default=5, ge=1)
    """Epochs of a trial that is not stopped early."""
    search: Literal["random", "grid", "optuna"] = "random"
    """``optuna`` learns from the trials before (tree-structured Parzen estimator); ``grid`` takes every combination of
    choices and steps, as far as ``trials`` reaches."""
    cost: Literal["flops", "seconds"] | None = None
    """What ``optuna`` weighs against Dice, as a second objective: operations to train on a slice, or seconds an epoch
    takes.  The search then shows which trials no other beats in both; ``best.yaml`` still has the highest Dice.  null
    looks at Dice alone."""
    scheduler: Literal["fifo", "asha", "hyperband"] = "asha"
    """``fifo`` stops no trial.  ``asha`` stops those that are behind at each rung, ``hyperband`` too, but divides the
    trials over brackets that begin with it later and later."""
    grace_epochs: int = Field(default=1, ge=1)
    """Epochs before a trial may be stopped: the first rung."""
    reduction: int = Field(default=2, ge=2)
    """One trial of this many goes on at each rung, and the next rung is so many times as far."""
    concurrent: int | None = Field(default=None, ge=1)
    """Most trials side by side; null is as many as the cluster has room for, nodes included that its autoscaler may
    start where it tells how many."""
    seed: int = Field(default=0, ge=0)
    confirm: int = Field(default=0, ge=0)
    """After the search, train the best config and the config as it stands in full with so many fresh seeds each, and
    score each model once on the test patients; 0 does not."""
    points: list[dict[str, Any]] = Field(default_factory=list)
    """Settings to try first, each a mapping of config keys to values.  The config as it stands comes before them."""
    space: dict[str, dict[str, Any]] = Field(
        default_factory=lambda: {"optim.lr": {"loguniform": [3e-4, 6e-3]}}
    )
    """Config key to ``{choice: [...]}``, ``{uniform: [low, high]}``, ``{loguniform: [low, high]}``, ``{randint: [low,
    high]}``, both ends included, or ``{quniform: [low, high, step]}``.  A choice may be between mappings of a
    section's fields, which may have distributions of their own."""

    @model_validator(mode="after")
    def _check_cost(self) -> Self:
        if self.cost is not None and self.search != "optuna":
            raise ValueError(
                f"tune.cost={self.cost} needs tune.search=optuna; tune.search={self.search} learns from nothing"
            )
        return self


class ClusterConfig(Section):
    runtime: Literal["ray", "local", "torchrun"] = "ray"
    """``local`` is one worker in this process; ``torchrun`` reads RANK and WORLD_SIZE from the environment."""
    address: str | None = None
    """Ray cluster to join: ``host:6379``, or ``auto`` for that of ``RAY_ADDRESS`` or else the one that this machine is
    a node of.  null starts one on this machine, whatever that variable says."""
    workers: int | tuple[int, int] = 2
    """How many, or ``[fewest, most]``: as many as the cluster has room for, fewer when a node is lost and more when
    one is added.  The global batch stays the same."""
    cpus_per_worker: float = Field(default=1, gt=0)
    gpus_per_worker: float | None = Field(default=None, ge=0)
    """null is one where the cluster has, or can start, GPUs enough for (the fewest of) ``workers`` and torch is built
    for them (here, where the cluster is started here), and none elsewhere.  0 trains on CPUs; below 1 several workers
    share a GPU.  Workers with a GPU each speak NCCL, others gloo."""
    placement: Literal["pack", "spread"] = "pack"
    """``pack`` puts workers on as few nodes as have room, where gradients travel fastest; ``spread`` on as many, so
    that a lost node costs fewer of them.  Neither is waited for."""
    max_failures: int = Field(default=3, ge=0)
    """Failures survived by resuming from the newest good checkpoint.  Nodes that are taken away with notice do not
    count."""
    frozen_s: float = Field(default=30, gt=0)
    """A worker that gives no sign of life for so long, in seconds, is taken for lost."""
    resize_s: float = Field(default=60, ge=0)
    """Seconds between two looks for room for more workers.  Growing repeats the steps since the last checkpoint."""
    wait_minutes: float = Field(default=30, gt=0)
    """How long a start, or a new start after a failure, waits for a fixed number of workers to find room."""

    @field_validator("workers", mode="before")
    @classmethod
    def _check_workers(cls, workers: Any) -> Any:
        span = [workers] * 2 if isinstance(workers, int) else workers
        whole = isinstance(span, list | tuple) and len(span) == 2 and all(type(n) is int for n in span)
        if not (whole and 1 <= span[0] <= span[1]):
            raise ValueError(
                "cluster.workers must be a number from 1 on, or [fewest, most] with 1 <= fewest <= most; "
                f"found {workers!r}"
            )
        return workers if isinstance(workers, int) else tuple(span)

    @field_validator("gpus_per_worker")
    @classmethod
    def _check_gpus(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1 and gpus != int(gpus):
            raise ValueError(f"cluster.gpus_per_worker above 1 must be a whole number; found {gpus:g}")
        return gpus

    @property
    def fewest(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]


class RunConfig(Section):
    dir: str = "runs"
    """Folder or ``s3://bucket/prefix`` that holds the runs."""
    name: str | None = None
    """Name of the run; null is derived from a hash of the config, so that two configs never share a run."""


class Config(Section):
    """Everything that makes a run.  Each checkpoint, manifest and score carries it."""

    data: DataConfig = DataConfig()
    split: SplitConfig = HoldoutSplit()
    pack: PackConfig = PackConfig()
    store: StoreConfig = StoreConfig()
    phantom: PhantomConfig = PhantomConfig()
    model: ModelConfig = UNetConfig()
    loss: BceDiceLoss = BceDiceLoss()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = CosineSchedule()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    score: ScoreConfig = ScoreConfig()
    track: TrackConfig = TrackConfig()
    tune: TuneConfig = TuneConfig()
    cluster: ClusterConfig = ClusterConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        step = 2 ** (self.model.depth - 1)
        if self.data.image_size is not None and self.data.image_size % step:
            raise ValueError(
                f"data.image_size is {self.data.image_size}; with model.depth {self.model.depth} it must be "
                f"a multiple of {step}"
            )
        if self.score.ensemble and isinstance(self.split, HoldoutSplit) and self.split.fold == "all":
            raise ValueError(
                "score.ensemble with split.fold=all: each fold has validation patients of its own, and no "
                "other run has the same; leave score.ensemble empty"
            )
        if self.train.deterministic and self.model.norm == "batch":
            raise ValueError(
                "train.deterministic with model.norm=batch: a batch's statistics depend on how it is divided; set "
                "model.norm=group or instance"
            )
        if self.train.global_batch < self.cluster.most:
            raise ValueError(
                f"train.global_batch is {self.train.global_batch} for {self.cluster.most} workers; give each "
                "worker at least one sample: raise train.global_batch or lower cluster.workers"
            )
        return self
