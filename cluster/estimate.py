"""``bts estimate``: time, GPU hours, money and bytes before anything is started, each with where it comes from."""

from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from bts_dist.config import Config
from bts_dist.flops import count_flops, format_flops
from bts_dist.model import find_model
from bts_dist.rates import Rates, measured_rates, recorded_rates
from bts_dist.run import run_uri
from bts_dist.track import read_metrics
from cluster import console
from cluster.prices import Instance, Prices, read_prices
from cluster.workload import Work, plan_work
from shards.errors import InputError
from shards.manifest import Manifest
from shards.reader import PackedData
from shards.store import open_store


def estimate(config: Config, model: str | None, prices: Path) -> None:
    """Print what the stages of ``bts run`` take, at the rates of a run's record or measured here and now.

    ``model`` is a run whose record to use; without it, it is the config's own run, if it has one.

    Raises:
        InputError: there is no packed data set, no record in the run that is named, or the prices are none.
    """
    listed = read_prices(prices)
    data = PackedData(config.data.shards, config.store, config.data)
    rates = find_rates(config, data, model)
    work = plan_work(config, data.manifest)
    console.out.print(
        f"rates: {rates.train:.1f} slices/s trained, {rates.predict:.1f} predicted  ({escape(rates.origin)})"
    )
    console.out.print(
        f"  {format_flops(rates.flops)} to train on a slice (counted); {rates.utilisation:.1%} of the peak of "
        f"{format_flops(rates.peak)}/s (measured)"
    )
    console.show_table(
        f"At these rates (slices: {config.data.shards}; epochs and trials: config)", _stages(work, rates)
    )
    console.out.print(f"  {_epoch(config, data.manifest, rates)}")
    console.show_table(
        f"On one instance, all its GPUs at work (prices of {listed.date} in {listed.region}, {prices}: "
        "check before you rely on it)",
        _instances(listed, work, rates),
    )
    console.out.print("  start, checkpoints, waiting for machines and lost spot machines come on top")


def find_rates(config: Config, data: PackedData, model: str | None) -> Rates:
    """Rates from the record of a run, or measured.

    Raises:
        InputError: ``model`` names a run without one.
    """
    sides = (data.manifest.height, data.manifest.width)
    if config.data.image_size is not None:
        sides = (config.data.image_size, config.data.image_size)
    run = open_store(find_model(model, config.store).run if model else run_uri(config), config.store)
    found = recorded_rates(
        read_metrics(run, "epoch"),
        data.manifest.num_samples("val"),
        count_flops(config.model, sides),
        run.uri,
    )
    if found is None and model:
        raise InputError(
            f"{run.uri} has no record of an epoch to take rates from; name another run, or leave --model out to "
            "measure here"
        )
    return found or measured_rates(config, data)


def on_instance(instance: Instance, work: Sequence[Work], rates: Rates) -> tuple[float, str]:
    """Hours of all stages on one instance, and how they were come by.

    On the GPU that was measured its rate holds, times the number of GPUs.  On another the share of the peak that
    training reached is taken to be the same there.
    """
    if rates.device == instance.gpu:
        factor, how = float(instance.gpus), "measured on this GPU, times their number"
    else:
        factor = instance.gpus * instance.bf16_tflops * 1e12 / rates.peak
        how = "at best: scaled by FLOP/s, not measured"
    return sum(part.seconds(rates.train * factor, rates.predict * factor) for part in work) / 3600, how


def _stages(work: Sequence[Work], rates: Rates) -> list[tuple[str, ...]]:
    rows = [("stage", "slices trained", "predicted", "time", "bytes read by a node", "")]
    for part in work:
        time = duration(part.seconds(rates.train, rates.predict))
        rows.append(
            (part.stage, f"{part.trained:,}", f"{part.predicted:,}", time, _size(part.bytes), part.note)
        )
    total = duration(sum(part.seconds(rates.train, rates.predict) for part in work))
    sums = (f"{sum(p.trained for p in work):,}", f"{sum(p.predicted for p in work):,}")
    return [*rows, ("all", *sums, total, _size(sum(p.bytes for p in work)), "one after the other")]


def _epoch(config: Config, manifest: Manifest, rates: Rates) -> str:
    train, val = manifest.num_samples("train") / rates.train, manifest.num_samples("val") / rates.predict
    gpus = config.cluster.most * (config.cluster.gpus_per_worker or 0)
    hours = f"; {gpus:g} GPUs (cluster.workers × gpus_per_worker)" if gpus else ""
    return f"an epoch: {duration(train)} of training, {duration(val)} of validation{hours}"


def _instances(prices: Prices, work: Sequence[Work], rates: Rates) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("instance", "GPUs", "time", "GPU hours", f"on demand, {prices.currency}", "spot", "how")
    ]
    for instance in prices.instances:
        hours, how = on_instance(instance, work, rates)
        money = (f"{hours * instance.on_demand:.2f}", f"{hours * instance.spot:.2f}")
        gpus = f"{instance.gpus} × {instance.gpu}"
        rows.append(
            (instance.name, gpus, duration(hours * 3600), f"{hours * instance.gpus:.2f}", *money, how)
        )
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
