"""What ``bts doctor`` says of this machine: versions, CPUs, memory, disks, GPUs, and how fast they are."""

import os
import shutil
import sys
from importlib import metadata
from pathlib import Path

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from bts_dist.cache import available_memory
from bts_dist.config import Config
from bts_dist.exchange import measure_all_reduce
from bts_dist.flops import DTYPES, format_flops, measure_peak
from cluster.finding import Finding, State
from shards.cache import cache_folder
from shards.cpus import available_cpus, is_busy, load_average
from shards.location import is_local, local_path
from shards.memory import SHARED, shared_room

PACKAGE = "bts-dist"
SHOWN = ("torch", "ray", "webdataset", "boto3", "wandb")
"""Packages whose versions are shown; those of all others are checked too."""

LITTLE_MEMORY = 2 << 30
"""Bytes.  Torch, Ray and a worker take about as much before they hold any data."""
LITTLE_SHARED = 1 << 30
"""Bytes of shared memory.  Docker gives 64 MiB unless told otherwise."""
LITTLE_DISK = 5 << 30
NO_DISK = 1 << 30
"""Bytes free below which nothing is kept in ``store.cache_dir`` (``shards.cache``)."""

SLOW_BF16 = 0.75
"""bf16 below this part of fp32 is emulated (0.1 to 0.4; real kernels reach 2) and not only slowed by others."""

DRIVER = Path("/proc/driver/nvidia/version")


def versions() -> list[Finding]:
    """Python and packages against what this package's metadata ask for."""
    found = f"Python {sys.version.split()[0]}"
    try:
        asked = [Requirement(line) for line in metadata.requires(PACKAGE) or ()]
        python = SpecifierSet(metadata.metadata(PACKAGE)["Requires-Python"] or "")
    except metadata.PackageNotFoundError:
        remedy = "install it: pip install -c constraints.txt -e ."
        return [Finding("versions", "warning", f"{found}; {PACKAGE} is not installed", remedy)]
    wrong = [] if python.contains(sys.version.split()[0]) else [f"{found}, not {python}"]
    shown = [found]
    for need in asked:
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{need.name} is missing, {need.specifier} is needed")
            continue
        if not need.specifier.contains(version, prereleases=True):
            wrong.append(f"{need.name} {version}, not {need.specifier}")
        if need.name in SHOWN:
            shown.append(f"{need.name} {version}")
    if wrong:
        return [Finding("versions", "error", ", ".join(wrong), "pip install -c constraints.txt -e .")]
    return [Finding("versions", "ok", ", ".join(shown))]


def cpus() -> list[Finding]:
    usable, there, load = available_cpus(), os.cpu_count() or 1, load_average()
    found = f"{usable} usable of {there}, load {load:.1f}, torch uses {torch.get_num_threads()} threads"
    if is_busy():
        return [Finding("CPUs", "warning", found, "others use this machine: the speeds below are too low")]
    return [Finding("CPUs", "ok", found)]


def memory() -> list[Finding]:
    """Main memory as this process's control group limits it, and the part that processes can share."""
    free, shared = available_memory(), shared_room()
    return [
        Finding("memory", "ok", f"{_gib(free)} free")
        if free >= LITTLE_MEMORY
        else Finding("memory", "warning", f"{_gib(free)} free", "free some, or give the container more"),
        Finding("shared memory", "ok", f"{_gib(shared)} free in {SHARED}")
        if shared >= LITTLE_SHARED
        else Finding(
            "shared memory",
            "warning",
            f"{_gib(shared)} free in {SHARED}",
            "give the container more (docker run --shm-size=8g): the cache of samples and Ray's objects lie there",
        ),
    ]


def disks(config: Config) -> list[Finding]:
    """Free space where shards are cached and, when it is a local folder, where the run is written."""
    places = {"cache disk": (str(cache_folder(config.store)), "store.cache_dir")}
    if is_local(config.run.dir):
        places["run disk"] = (str(local_path(config.run.dir)), "run.dir")
    return [_disk(check, folder, key) for check, (folder, key) in places.items()]


def _disk(check: str, folder: str, key: str) -> Finding:
    remedy = f"set {key} to another folder"
    if file := in_the_way(Path(folder)):
        return Finding(check, "error", f"{folder}: {file} is a file", remedy)
    there = nearest(Path(folder))
    found = f"{_gib(free := shutil.disk_usage(there).free)} free for {folder}"
    if not os.access(there, os.W_OK):
        return Finding(check, "error", f"{there} cannot be written", remedy)
    if free < LITTLE_DISK:
        state: State = "error" if free < NO_DISK else "warning"
        return Finding(check, state, found, f"free some, or {remedy}")
    return Finding(check, "ok", found)


def nearest(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    return next(place for place in _upwards(folder) if os.path.isdir(place))


def in_the_way(folder: Path) -> Path | None:
    """The file that lies where the folder, or one above it, would be."""
    there = next(place for place in _upwards(folder) if os.path.exists(place))
    return None if os.path.isdir(there) else there


def _upwards(folder: Path) -> tuple[Path, ...]:
    """``os.path`` asks of these, not ``Path``, which raises where it may not look."""
    folder = folder.expanduser().absolute()
    return folder, *folder.parents


def gpus(config: Config) -> list[Finding]:
    """Each GPU, and whether ``train.precision`` suits it."""
    wanted = bool(config.cluster.gpus_per_worker) and not joins(config)
    driver = (
        DRIVER.read_text().splitlines()[0].split("Kernel Module")[-1].split()[0] if DRIVER.is_file() else ""
    )
    if not torch.cuda.is_available():
        build = f"torch {torch.__version__} has {torch.version.cuda or 'no'} CUDA"
        if driver:
            remedy = "install a CUDA build of torch that this driver can run"
            return [Finding("GPUs", "warning", f"none that torch can use: driver {driver}, {build}", remedy)]
        if wanted:
            remedy = "set cluster.gpus_per_worker=0, or install the NVIDIA driver and a CUDA build of torch"
            return [
                Finding("GPUs", "error", f"none, and cluster.gpus_per_worker asks for them; {build}", remedy)
            ]
        if joins(config):
            return [Finding("GPUs", "ok", "none here; the workers' count")]
        return [Finding("GPUs", "ok", f"none; training uses CPUs ({build})")]
    return [_gpu(number, driver, config.train.precision) for number in range(torch.cuda.device_count())]


def _gpu(number: int, driver: str, precision: str) -> Finding:
    facts = torch.cuda.get_device_properties(number)
    with torch.cuda.device(number):
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    found = (
        f"{facts.name}, {_gib(facts.total_memory)}, driver {driver or 'unknown'}, CUDA {torch.version.cuda}, "
        f"{'bf16' if bf16 else 'no bf16'}"
    )
    if precision == "bf16" and not bf16:
        return Finding(f"GPU {number}", "warning", found, "set train.precision=fp16: it is faster here")
    return Finding(f"GPU {number}", "ok", found)


def joins(config: Config) -> bool:
    """Whether the workers are those of a cluster that others started, and not this machine's."""
    return config.cluster.runtime == "ray" and config.cluster.address is not None


def own_speeds(config: Config) -> list[Finding]:
    """Those of this machine, which trains itself where it joins no cluster."""
    return speeds(None if joins(config) else config.train.precision)


def speeds(precision: str | None) -> list[Finding]:
    """Operations a second of the best kernel, in two precisions; on the first GPU where there is one.

    ``precision`` is that of a training here; None where there will be none.
    """
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        peak = {n: measure_peak(device, DTYPES[n], torch.get_num_threads()) for n in ("bf16", "fp32")}
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        return [
            Finding(
                "arithmetic", "error", f"{device}: {reason}", "see that its driver and torch fit together"
            )
        ]
    found = ", ".join(f"{name} {format_flops(speed)}/s" for name, speed in peak.items()) + f" on {device}"
    if precision == "bf16" and device.type == "cpu" and peak["bf16"] < SLOW_BF16 * peak["fp32"]:
        return [Finding("arithmetic", "warning", found, "set train.precision=fp32: it is faster here")]
    return [Finding("arithmetic", "ok", found)]


def exchange() -> list[Finding]:
    """All-reduce between processes of this machine: one for each GPU, or two on the CPU."""
    ranks = max(2, torch.cuda.device_count())
    kind = "NCCL" if torch.cuda.device_count() >= 2 else "gloo"
    try:
        speed = measure_all_reduce(ranks)
    except RuntimeError as error:
        remedy = "see that processes of this machine may open connections to each other (GLOO_SOCKET_IFNAME)"
        return [Finding("all-reduce", "error", f"{ranks} processes, {kind}: {error}", remedy)]
    return [Finding("all-reduce", "ok", f"{speed / 1e9:.2f} GB/s between {ranks} processes here, {kind}")]


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
