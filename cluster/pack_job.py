"""Packing as a job: Ray tasks on the cluster, or a process pool where there is none."""

from collections.abc import Callable

from bts_dist.config import Config
from bts_dist.run import absolute
from cluster.ray_map import ray_map
from cluster.resources import ray_cluster
from shards.manifest import Manifest
from shards.pack import Progress, data_id, pack
from shards.parallel import process_map
from shards.verify import SourceReport


def run_pack(config: Config, report: SourceReport, progress: Progress | None = None) -> Manifest:
    """Pack a source that verified without errors.  Raises what ``shards.pack.pack`` raises."""

    def packed(config: Config, parallel: Callable[..., object]) -> Manifest:
        return pack(
            report,
            config.data.shards,
            source=config.data.source,
            split=config.split,
            config=config.pack,
            store=config.store,
            parallel=parallel,  # type: ignore[arg-type]
            progress=progress,
        )

    if config.cluster.runtime != "ray":
        return packed(config, process_map(config.pack.workers))
    with ray_cluster(config.cluster):
        return packed(absolute(config), ray_map())


def packed_id(config: Config, report: SourceReport) -> str:
    """The id of the data set that packing this source would give."""
    return data_id(report.fingerprint, config.split, config.pack)
