"""How much of the host's memory is there to be used; a container has less than its machine."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def total_bytes() -> int:
    """The memory that this process and its kin may use."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(machine, _cgroup("memory.max") or machine)


def available_bytes() -> int:
    """How much of it can be had now, without making others swap."""
    total, free = total_bytes(), 0
    with suppress(OSError, ValueError):
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    return min(free or total, limit - used) if limit is not None and used is not None else free or total


def _cgroup(name: str) -> int | None:
    """A number of our control group; None where there is none, or no limit."""
    with suppress(OSError, ValueError):
        return int((_CGROUP / name).read_text())
    return None
