"""How many CPUs this process may use, which in a container is often fewer than the machine has."""

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def available_cpus(cgroups: Path = CGROUPS) -> int:
    """The least of the machine's CPUs, those this process is bound to, and its control group's quota; at least one.

    The quota is ``cpu.max`` in version 2 of control groups, ``cpu.cfs_quota_us`` in version 1 (the Linux kernel's
    admin-guide/cgroup-v2 and scheduler/sched-bwc).  A part of a CPU counts as a whole one.
    """
    counts = [os.cpu_count() or 1, len(os.sched_getaffinity(0))]
    quota = _quota(cgroups)
    return max(1, min([*counts, *([] if quota is None else [math.ceil(quota)])]))


def _quota(cgroups: Path) -> float | None:
    """CPUs' worth of time in each period, or None where there is no limit."""
    unified, divided = cgroups / "cpu.max", cgroups / "cpu" / "cpu.cfs_quota_us"
    if unified.is_file():
        quota, period = unified.read_text().split()
    elif divided.is_file():
        quota, period = divided.read_text(), divided.with_name("cpu.cfs_period_us").read_text()
    else:
        return None
    return None if quota == "max" or int(quota) < 0 else int(quota) / int(period)


def load_average() -> float:
    """How many processes wanted a CPU of this machine in the last minute, on average."""
    return os.getloadavg()[0]


def is_busy() -> bool:
    """Whether others keep the CPUs so busy that what is measured on them is too slow."""
    return load_average() > 2 * available_cpus()
