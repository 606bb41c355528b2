"""How much there is to do: slices trained on and predicted in each stage, and bytes that a node reads for it."""

from dataclasses import dataclass

from bts_dist.config import Config
from shards.manifest import Manifest


@dataclass(frozen=True)
class Work:
    """One stage's part."""

    stage: str
    trained: int
    """Slices that go forwards and backwards, each as often as it does."""
    predicted: int
    """Slices that are predicted, in validation and scoring."""
    bytes: int
    """Bytes of shards that each node reads from the store, at most."""
    note: str = ""

    def seconds(self, train: float, predict: float) -> float:
        """Duration at these rates, in slices a second."""
        return self.trained / train + self.predicted / predict


def plan_work(config: Config, manifest: Manifest) -> list[Work]:
    """The stages of ``bts run`` after packing: tune where there are trials, train, score.

    A search is counted as if no trial were stopped early and each ran after the other; a training as if early stopping
    never stepped in.
    """
    tune, stages = config.tune, []
    if tune.trials:
        note = f"at most: {tune.trials} trials of {tune.epochs} epochs, none stopped early"
        stages.append(_training("tune", config, manifest, tune.epochs, tune.trials, note))
        if tune.confirm:
            pairs = 2 * tune.confirm
            note = f"{pairs} full trainings, each scored"
            work = _training("confirm", config, manifest, config.train.epochs, pairs, note)
            tested = pairs * manifest.num_samples("test")
            size = work.bytes + _bytes(config, manifest, ("test",), pairs)
            stages.append(Work(work.stage, work.trained, work.predicted + tested, size, note))
    early = f"at most: train.early_stop={config.train.early_stop}" if config.train.early_stop else ""
    stages.append(_training("train", config, manifest, config.train.epochs, 1, early))
    tested, size = manifest.num_samples("test"), _bytes(config, manifest, ("test",), 1)
    stages.append(Work("score", 0, tested, size, "prediction alone, without its metrics"))
    return stages


def _training(stage: str, config: Config, manifest: Manifest, epochs: int, times: int, note: str) -> Work:
    passes = epochs * times
    return Work(
        stage,
        passes * manifest.num_samples("train"),
        passes * manifest.num_samples("val"),
        _bytes(config, manifest, ("train", "val"), passes),
        note,
    )


def _bytes(config: Config, manifest: Manifest, splits: tuple[str, ...], passes: int) -> int:
    """Bytes that a node fetches for so many passes over the splits.

    Shards stay on the node's disk unless ``data.cache`` is ``none`` or they are more than ``store.cache_gib``; then
    each pass fetches them again.  Nothing is fetched from a local folder.
    """
    if "://" not in config.data.shards:
        return 0
    size = sum(shard.bytes for shard in manifest.shards if shard.split in splits)
    kept = config.data.cache != "none" and size <= config.store.cache_gib * 2**30
    return size if kept else size * passes
