"""``bts estimate``: time, GPU hours, money and bytes before anything is started, each with where it comes from."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from bts_dist import checkpoint
from bts_dist.config import Config
from bts_dist.flops import count_flops, format_flops
from bts_dist.model import FOLDS, find_model
from bts_dist.rates import Rates, measured_rates, recorded_rates
from bts_dist.run import run_uri
from bts_dist.track import read_metrics
from bts_dist.train import check_fit
from cluster import console
from cluster.data_size import DataSize, fold_sizes, size_of
from cluster.folds import fold_config
from cluster.gpu_use import all_gpus_work, workers_in_words
from cluster.prices import Instance, Prices, read_prices
from cluster.trial_size import largest_trial
from cluster.workload import Work, bytes_in_all, plan_folds, plan_work, validation_passes
from shards.errors import InputError
from shards.manifest import Manifest, find_manifest, load_manifest
from shards.reader import PackedData
from shards.store import ObjectStore, StoreError, join_uri, open_store


def estimate(config: Config, model: str | None, prices: Path) -> None:
    """Print what the stages of ``bts run`` take, at the rates of a run's record or measured here and now.

    ``model`` is a run whose record to use; without it, it is the config's own run, if it has one.

    Raises:
        InputError: there is no packed data set or none that can be trained on like this, no record in the run that is
            named, or the prices are none.
    """
    listed = read_prices(prices)
    first, sizes = _data_sets(config)
    data = check_fit(first, config.cluster.most)
    rates = find_rates(first, data, model)
    work = plan_work(config, sizes[0]) if len(sizes) == 1 else plan_folds(config, sizes)
    _show_rates(rates)
    devices = "one device" if rates.devices == 1 else f"{rates.devices} devices together"
    console.show_table(
        f"At these rates, of {devices} (slices: {_places(config, sizes)}; epochs and trials: config)",
        _stages(work, rates, bytes_in_all(config, sizes, work)),
    )
    console.out.print(f"  {_epoch(config, sizes, rates)}")
    _show_search(config, data.manifest)
    console.out.print(f"  {workers_in_words(config.cluster)}")
    console.show_table(
        f"On one instance with a worker on each GPU, for which the config needs what the last column says (prices of "
        f"{listed.date} in {listed.region}, {prices}: check before you rely on it)",
        _instances(config, listed, work, rates),
    )
    console.out.print("  start, checkpoints, waiting for machines and lost spot machines come on top")


def find_rates(config: Config, data: PackedData, model: str | None) -> Rates:
    """Rates from the record of a run, or measured.

    Raises:
        InputError: ``model`` names a run without one.
    """
    sides = _sides(config, data.manifest)
    run = open_store(_recording_run(config, model), config.store)
    rows = read_metrics(run, "epoch")
    if rows:
        passes = _passes_of_a_validation(run, config, data.manifest)
        found = recorded_rates(rows, passes, count_flops(config.model, sides), run.uri)
        assert found is not None
        return found
    if model:
        raise InputError(
            f"{run.uri} has no record of an epoch to take rates from; name another run, or leave --model out to "
            "measure here"
        )
    return measured_rates(config, data)


def _sides(config: Config, manifest: Manifest) -> tuple[int, int]:
    """Pixels that the config's model sees."""
    size = config.data.image_size
    return (manifest.height, manifest.width) if size is None else (size, size)


def on_instance(instance: Instance, work: Sequence[Work], rates: Rates) -> tuple[float, str]:
    """Hours of all stages on one instance, and how they were come by.

    On the GPU that was measured its rate holds, of one GPU and times their number.  On another the share of the peak
    that training reached is taken to be the same there.
    """
    if instance.has(rates.device):
        factor, how = instance.gpus / rates.devices, "measured on this GPU, times their number"
        if rates.scaled:
            how = "another model on this GPU: scaled by FLOP a slice, times their number"
    else:
        factor = instance.gpus * instance.bf16_tflops * 1e12 / rates.peak
        how = "at best: scaled by FLOP/s, not measured"
    predict = rates.predict * factor if rates.predict is not None else None
    return sum(part.seconds(rates.train * factor, predict) for part in work) / 3600, how


def _data_sets(config: Config) -> tuple[Config, list[DataSize]]:
    """The config of a data set to measure on, and the sizes of all data sets that are trained on."""
    if not (config.split.kind == "patient" and config.split.fold == "all"):
        return config, [size_of(load_manifest(open_store(config.data.shards, config.store)))]
    sizes, first = fold_sizes(config), fold_config(config, 0)
    if find_manifest(open_store(first.data.shards, first.store)) is None:
        place = first.data.model_copy(update={"shards": config.data.shards})
        first = first.model_copy(update={"data": place})
    return first, sizes


def _places(config: Config, sizes: Sequence[DataSize]) -> str:
    return config.data.shards if len(sizes) == 1 else f"{len(sizes)} folds of {config.data.shards}"


def _recording_run(config: Config, model: str | None) -> str:
    """The run whose record counts; of a cross-validation its first fold's."""
    if not model:
        return run_uri(config)
    place = find_model(model, config.store)
    return join_uri(place.run, FOLDS, "fold-0") if place.name == FOLDS else place.run


def _passes_of_a_validation(run: ObjectStore, config: Config, manifest: Manifest) -> int | None:
    """Forward passes of one validation of ``run``, by the config and data set that its checkpoint names.

    None where it has no checkpoint, or its data set is another one than ``manifest``'s and not found where it was.
    """
    with tempfile.TemporaryDirectory() as scratch:
        newest = checkpoint.fetch_newest(run, Path(scratch), _say, checkpoint.FACTS)
        if newest is None:
            return None
        own, data_id = checkpoint.read_config(newest), checkpoint.read_progress(newest).data_id
    if data_id == manifest.data_id:
        return manifest.num_samples("val") * validation_passes(own)
    try:
        other = find_manifest(open_store(own.data.shards, config.store))
    except (InputError, StoreError):
        return None
    if other is None or other.data_id != data_id:
        return None
    return other.num_samples("val") * validation_passes(own)


def _say(text: str) -> None:
    console.out.print(f"  {text}", markup=False)


def _show_rates(rates: Rates) -> None:
    predict = "prediction not known" if rates.predict is None else f"{rates.predict:.1f} forward passes/s"
    console.out.print(f"rates: {rates.train:.1f} slices/s trained, {predict}  ({escape(rates.origin)})")
    if rates.doubt:
        console.out.print(f"  [yellow]warning[/] {escape(rates.doubt)}")
    console.out.print(
        f"  {format_flops(rates.flops)} to train on a slice (counted); {rates.utilisation:.1%} of the peak of "
        f"{format_flops(rates.peak)}/s (measured)"
    )
    if rates.predict is None:
        console.out.print(
            "  times are of training alone: how many slices that run validated is not known, since its data set is "
            "not where its checkpoint says"
        )


def _show_search(config: Config, manifest: Manifest) -> None:
    """Say how much larger than the config's own the models of a search may be."""
    if not config.tune.trials:
        return
    most = largest_trial(config, (manifest.height, manifest.width))
    if most > 1:
        console.out.print(
            f"  the search tries models and sizes of up to {most:.3g} × the operations a slice: tune, and what follows "
            "with the best one, may take as many times what is said here, which is of the config's own",
            markup=False,
        )


def _stages(work: Sequence[Work], rates: Rates, bytes_read: int) -> list[tuple[str, ...]]:
    rows = [("stage", "slices trained", "forward passes", "time", "bytes read by a node", "")]
    for part in work:
        known = part.trained or rates.predict is not None
        time = duration(part.seconds(rates.train, rates.predict)) if known else "not known"
        rows.append((part.stage, f"{part.trained:,}", f"{part.passes:,}", time, _size(part.bytes), part.note))
    total = duration(sum(part.seconds(rates.train, rates.predict) for part in work))
    sums = (f"{sum(p.trained for p in work):,}", f"{sum(p.passes for p in work):,}")
    return [*rows, ("all", *sums, total, _size(bytes_read), "one after the other")]


def _epoch(config: Config, sizes: Sequence[DataSize], rates: Rates) -> str:
    slices, whose = sizes[0].slices, "" if len(sizes) == 1 else " of the first fold"
    passes = slices["val"] * validation_passes(config)
    val = "not known" if rates.predict is None else duration(passes / rates.predict)
    return f"an epoch{whose}: training {duration(slices['train'] / rates.train)}, validation {val}"


def _instances(config: Config, prices: Prices, work: Sequence[Work], rates: Rates) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("instance", "GPUs", "time", "GPU hours", f"on demand, {prices.currency}", "spot", "how", "needs")
    ]
    for instance in prices.instances:
        hours, how = on_instance(instance, work, rates)
        money = (f"{hours * instance.on_demand:.2f}", f"{hours * instance.spot:.2f}")
        gpus = f"{instance.gpus} × {instance.gpu}"
        figures = (duration(hours * 3600), f"{hours * instance.gpus:.2f}", *money)
        rows.append((instance.name, gpus, *figures, how, all_gpus_work(config, instance.gpus)))
    return rows


def duration(seconds: float) -> str:
    """``1 h 03 min``, ``4 min 10 s`` or ``8.1 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB" if num_bytes else "none: a local folder"
