"""What this process may use of the machine it runs on: processor cores and memory, control groups included.

Must not import torch: the number of threads is needed before anything is loaded.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")


def usable_cores(proc: Path = PROC, cgroup: Path = CGROUP) -> int:
    """Cores of this process's affinity, or fewer where a control group gives it less time. At least 1."""
    cores = float(len(os.sched_getaffinity(0)))
    for folder in _cgroup_folders("cpu", proc, cgroup):
        quota = _read_words(folder / "cpu.max") or [*_read_words(folder / "cpu.cfs_quota_us"), "100000"]
        if len(quota) == 2 and quota[0].isdigit():
            cores = min(cores, int(quota[0]) / int(quota[1]))
    return max(1, math.ceil(cores))


def free_cpu_bytes(proc: Path = PROC, cgroup: Path = CGROUP) -> int:
    """What a new process could allocate: the machine's available memory, or less where a control group limits it."""
    return min([_available_bytes(proc), *_cgroup_rest_bytes(proc, cgroup)])


def _available_bytes(proc: Path) -> int:
    for line in (proc / "meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"{proc / 'meminfo'} has no MemAvailable")


def _cgroup_rest_bytes(proc: Path, cgroup: Path) -> Iterator[int]:
    """Limit minus usage, of every control group that this process is in."""
    for folder in _cgroup_folders("memory", proc, cgroup):
        limit = _read_words(folder / "memory.max") or _read_words(folder / "memory.limit_in_bytes")
        usage = _read_words(folder / "memory.current") or _read_words(folder / "memory.usage_in_bytes")
        if limit and usage and limit[0].isdigit():  # not "max"
            yield max(0, int(limit[0]) - int(usage[0]) + _reclaimable_bytes(folder))


def _reclaimable_bytes(folder: Path) -> int:
    """Page cache that the kernel gives back before it refuses memory; it counts as usage."""
    words = _read_words(folder / "memory.stat")
    values = dict(zip(words[::2], words[1::2], strict=False))
    return int(values.get("total_inactive_file", values.get("inactive_file", "0")))


def _cgroup_folders(controller: str, proc: Path, cgroup: Path) -> Iterator[Path]:
    """The folders of this process's control group and of all above it, in both versions of the interface."""
    membership = proc / "self" / "cgroup"
    for line in membership.read_text().splitlines() if membership.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root = cgroup
        elif controller in controllers.split(","):
            root = cgroup / controller
        else:
            continue
        folder = root / path.lstrip("/")
        yield folder
        yield from (parent for parent in folder.parents if parent == root or root in parent.parents)


def _read_words(file: Path) -> list[str]:
    """The words of a small file; none where it does not exist."""
    try:
        return file.read_text().split()
    except OSError:
        return []
