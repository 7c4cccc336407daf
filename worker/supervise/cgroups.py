"""The control groups of this process: what they grant it, and what happened in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Final

#: Where the kernel's files are; tests have their own.
ROOT: Final = Path("/")


def cpu_cores(root: Path = ROOT) -> float | None:
    """Return the processor time that the groups grant, in cores; None where they grant all.

    A container with two of 64 cores' time sees all 64 cores. With as many threads it would stand still for most of each
    100 ms.
    """
    limits = [_cpu_limit(folder) for folder in _folders("cpu", root)]
    return min((limit for limit in limits if limit is not None), default=None)


def memory_limits(root: Path = ROOT) -> Iterator[tuple[int, int | None]]:
    """Yield the memory that each group grants, in bytes, and how much of it is in use where that is known."""
    for folder in _folders("memory", root):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            granted = _number(folder / limit)
            if granted is not None:
                yield granted, _number(folder / used)


def machine_bytes(root: Path = ROOT) -> int:
    """Return the memory of this machine in bytes, or what this process's control groups grant, if that is less."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([there, *(granted for granted, _used in memory_limits(root))])


def oom_kills(root: Path = ROOT) -> int:
    """Return how often the kernel killed for lack of memory: in our group, else on this machine."""
    events = (folder / "memory.events" for folder in _folders("memory", root))
    for path in chain(events, [root / "proc/vmstat"]):
        with suppress(OSError, ValueError):
            for line in path.read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0


def _folders(controller: str, root: Path) -> Iterator[Path]:
    """Yield our group's folder and those of the groups around it; version 2 of the interface, and version 1's."""
    top = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _hierarchy, controllers, path = line.split(":", 2)
        own = Path(path.lstrip("/"))
        if not controllers:
            yield from (top / group for group in (own, *own.parents))
        elif controller in controllers.split(","):
            yield from (top / controller / group for group in (own, *own.parents))


def _cpu_limit(folder: Path) -> float | None:
    """Read `200000 100000` as two cores' time, and `max 100000` as no limit; version 1 has a file for each number."""
    with suppress(OSError, ValueError):
        quota_us, period_us = (folder / "cpu.max").read_text().split()
        return int(quota_us) / int(period_us)
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota / period if quota is not None and period else None


def _number(path: Path) -> int | None:
    """Read a number; None where there is no such file, or no limit (`max`, -1)."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
