"""How much there is to do: slices trained on and forward passes in each stage, and bytes that a node reads for it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bts_dist import choosing, score
from bts_dist.config import Config
from cluster.data_size import DataSize
from cluster.tune_space import parse_space
from shards.location import is_local
from shards.plan import Split


@dataclass(frozen=True)
class Work:
    """One stage's part."""

    stage: str
    trained: int
    """Slices that go forwards and backwards, each as often as it does."""
    passes: int
    """Forward passes in validation, choosing and scoring: a slice takes one for each checkpoint that predicts it, and
    as many again where it is mirrored."""
    bytes: int
    """Bytes of shards that each node reads from the store, at most."""
    note: str = ""

    def seconds(self, train: float, predict: float | None) -> float:
        """Duration at these rates, in slices and in forward passes a second; without ``predict`` of training alone."""
        return self.trained / train + (self.passes / predict if predict is not None else 0.0)


def plan_work(config: Config, size: DataSize) -> list[Work]:
    """The stages of ``bts run`` after packing: tune and confirm where there are trials, train, choose, score.

    A search is counted as if no trial were stopped early and each ran after the other; a training as if early stopping
    never stepped in; scoring as if the choices had taken all that they may take.
    """
    tune, stages = config.tune, []
    if tune.trials:
        trials = _num_trials(config)
        note = f"at most: {trials} trials of {tune.epochs} epochs, none stopped early"
        stages.append(_training("tune", config, size, tune.epochs, trials, note))
        if tune.confirm:
            stages.append(_confirmation(config, size))
    early = f"at most: train.early_stop={config.train.early_stop}" if config.train.early_stop else ""
    stages.append(_training("train", config, size, config.train.epochs, 1, early))
    members, mirror = most_members(config), most_passes(config)
    how, passes = f"{_words(members, mirror)}; prediction alone, without its", members * mirror
    return [
        *stages,
        _prediction("choose", config, size, "val", passes, f"{how} counts"),
        _prediction("score", config, size, "test", passes, f"{how} metrics"),
    ]


def plan_folds(config: Config, sizes: Sequence[DataSize]) -> list[Work]:
    """The stages of a cross-validation: those of ``bts run`` for each fold, then all patients scored together."""
    folds = [plan_work(config, size) for size in sizes]
    stages = []
    for parts in zip(*folds, strict=True):
        note = f"{len(folds)} folds" + (f"; {parts[0].note}" if parts[0].note else "")
        stages.append(_sum(parts, note))
    again = _sum([work[-1] for work in folds], "each patient once more, by the fold's own model")
    return [*stages, replace(again, stage="score together")]


def bytes_in_all(config: Config, sizes: Sequence[DataSize], work: Sequence[Work]) -> int:
    """Bytes that a node reads in all stages together, at most: what stays on its disk is there for later stages."""
    once = sum(num for size in sizes for num in size.bytes.values())
    stages = sum(part.bytes for part in work)
    return min(once, stages) if _kept(config, once) else stages


def most_members(config: Config) -> int:
    """The most checkpoints that choosing may average: the best one, others that are kept, and ``score.ensemble``.

    The newest ``train.keep_checkpoints`` are kept and the best one beside them, and only those that end an epoch count.
    A run that is extended may keep more: what its best checkpoint was averaged with before.
    """
    if "ensemble" not in config.score.choices:
        return 1
    own = min(config.train.keep_checkpoints + 1, config.train.epochs)
    return own + len(config.score.ensemble)


def most_passes(config: Config) -> int:
    """Forward passes of a checkpoint for a slice in choosing, and at most in scoring."""
    return 2 if config.score.mirror or "mirror" in config.score.choices else 1


def validation_passes(config: Config) -> int:
    """Forward passes for a slice in the validation after each epoch."""
    return 2 if config.score.mirror else 1


def _num_trials(config: Config) -> int:
    """As many as the search has: a grid may end before ``tune.trials``."""
    tune = config.tune
    if tune.search != "grid":
        return tune.trials
    return min(tune.trials, 1 + len(tune.points) + parse_space(config).grid_size())


def _words(members: int, mirror: int) -> str:
    many = f"at most {members} checkpoints" if members > 1 else "one checkpoint"
    return f"{many}, mirrored" if mirror == 2 else many


def _confirmation(config: Config, size: DataSize) -> Work:
    """Two arms with so many seeds each; every model predicts as it was validated, and nothing is chosen for it."""
    pairs, passes = 2 * config.tune.confirm, validation_passes(config)
    note = f"at most: {pairs} full trainings, each scored as validated"
    work = _training("confirm", config, size, config.train.epochs, pairs, note)
    scored = _prediction("score", config, size, "test", passes, "")
    return replace(
        work,
        passes=work.passes + pairs * scored.passes,
        bytes=work.bytes + (scored.bytes if _kept(config, scored.bytes) else pairs * scored.bytes),
    )


def _training(stage: str, config: Config, size: DataSize, epochs: int, times: int, note: str) -> Work:
    repeats = epochs * times
    return Work(
        stage,
        repeats * size.slices["train"],
        repeats * size.slices["val"] * validation_passes(config),
        _bytes(config, size, ("train", "val"), repeats),
        note,
    )


def _prediction(stage: str, config: Config, size: DataSize, split: Split, passes: int, note: str) -> Work:
    # Each task reads for itself, and what it needs may lie in every shard.
    return Work(
        stage,
        0,
        size.slices[split] * passes,
        _bytes(config, size, (split,), _tasks(config, size, split)),
        note,
    )


def _tasks(config: Config, size: DataSize, split: Split) -> int:
    """How many tasks the patients of a split are dealt out to, as scoring and choosing do."""
    workers = config.cluster.most if config.cluster.runtime == "ray" else 1
    num_tasks = score.num_tasks if split == "test" else choosing.num_tasks
    return num_tasks(size.patients[split], workers)


def _sum(parts: Sequence[Work], note: str) -> Work:
    return Work(
        parts[0].stage,
        sum(part.trained for part in parts),
        sum(part.passes for part in parts),
        sum(part.bytes for part in parts),
        note,
    )


def _bytes(config: Config, size: DataSize, splits: tuple[Split, ...], repeats: int) -> int:
    """Bytes that a node fetches to go over the splits so many times.

    Shards stay on the node's disk unless ``data.cache`` is ``none`` or they are more than ``store.cache_gib``; then
    each time fetches them again.  Nothing is fetched from a local folder.
    """
    if is_local(config.data.shards):
        return 0
    once = sum(size.bytes[split] for split in splits)
    return once if _kept(config, once) else once * repeats


def _kept(config: Config, num_bytes: int) -> bool:
    """Whether so many bytes of shards stay on a node's disk."""
    return config.data.cache != "none" and num_bytes <= config.store.cache_gib * 2**30
