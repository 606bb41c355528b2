"""Which GPUs the workers of a config will use, said before there is a cluster to look at."""

from bts_dist.config import ClusterConfig, Config


def workers_in_words(cluster: ClusterConfig) -> str:
    """How many workers there will be, and what they compute on; with a cluster at hand ``placement.place`` decides."""
    on_cpus = cluster.gpus_per_worker == 0
    if cluster.runtime == "local":
        where = "on the CPU (cluster.gpus_per_worker=0)" if on_cpus else "on a GPU where torch finds one"
        return f"workers: one (cluster.runtime=local), {where}"
    if cluster.runtime == "torchrun":
        own = "each on a GPU of its own where torch finds GPUs"
        return f"workers: as many as torchrun starts, {'on CPUs (cluster.gpus_per_worker=0)' if on_cpus else own}"
    span = str(cluster.most) if cluster.fewest == cluster.most else f"{cluster.fewest} to {cluster.most}"
    each = cluster.gpus_per_worker
    if each is None:
        return (
            f"workers: {span} (cluster.workers), with a GPU each where the cluster has, or can start, "
            f"{cluster.fewest}; on CPUs elsewhere (cluster.gpus_per_worker=null)"
        )
    if each == 0:
        return f"workers: {span} (cluster.workers), on CPUs (cluster.gpus_per_worker=0)"
    gpus = f"{cluster.most * each:g}"
    if cluster.fewest != cluster.most:
        gpus = f"{cluster.fewest * each:g} to {gpus}"
    return f"workers: {span} (cluster.workers) with {each:g} GPU each: {gpus} GPUs"


def all_gpus_work(config: Config, gpus: int) -> str:
    """The settings with which all of an instance's ``gpus`` are at work; nothing where the config has them so.

    A worker computes on one GPU, whatever share or number of them it reserves, and needs a slice of each global batch.
    """
    cluster, settings, workers = config.cluster, list[str](), gpus
    on_ray = cluster.runtime == "ray" or (cluster.runtime == "local" and gpus > 1)
    if on_ray and cluster.runtime != "ray":
        settings.append("cluster.runtime=ray")
    if cluster.runtime == "torchrun" and gpus > 1:
        settings.append(f"--nproc-per-node={gpus}")
    each = cluster.gpus_per_worker
    if each is not None and (each == 0 or (each > 1 and on_ray)):
        each = None
        settings.append("cluster.gpus_per_worker=1")
    if on_ray:
        workers = gpus if each is None else gpus * int(1 / each + 1e-9)
        if not cluster.fewest <= workers <= cluster.most:
            settings.append(f"cluster.workers={workers}")
    if workers > config.train.global_batch:
        settings.append(f"train.global_batch={workers}")
    return ", ".join(settings)
