"""The processor cores that this process may use, and how several processes share them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")
_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def usable() -> list[int]:
    """The cores this process may run on; the threads of one physical core stand side by side."""
    if not hasattr(os, "sched_getaffinity"):
        return list(range(os.cpu_count() or 1))
    return sorted(os.sched_getaffinity(0), key=lambda core: (_first_sibling(core), core))


def _first_sibling(core: int) -> int:
    with suppress(OSError, ValueError):
        return int(Path(_TOPOLOGY.format(core)).read_text().replace("-", ",").split(",")[0])
    return core


def quota(cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUP) -> float | None:
    """The processor time that the control group grants, in cores; None where it grants all.

    A container with two of 64 cores' time sees all 64 cores; with as many threads it would stand still for most of each
    100 ms.
    """
    limits = [_limit(path / "cpu.max") for path in _groups(cgroups, own)]
    with suppress(OSError, ValueError):  # version 1
        folder = cgroups / "cpu"
        limits.append(_of(*((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))))
    return min((limit for limit in limits if limit is not None), default=None)


def _groups(cgroups: Path, own: Path) -> Iterator[Path]:
    """Our own group and those around it, each of which may set a limit; in a container, the outermost is its own."""
    with suppress(OSError):
        for line in own.read_text().splitlines():
            if line.startswith("0::/"):
                inner = Path(line.removeprefix("0::/"))
                yield from (cgroups / group for group in (inner, *inner.parents))
    yield cgroups


def _limit(path: Path) -> float | None:
    """What a `cpu.max` says: `200000 100000` is two cores' time, `max 100000` is no limit."""
    try:
        return _of(*path.read_text().split())
    except (OSError, ValueError, TypeError):
        return None


def _of(quota_us: str, period_us: str) -> float | None:
    return None if quota_us in {"max", "-1"} else int(quota_us) / int(period_us)


def share_out(cores: Sequence[int], processes: int) -> list[tuple[int, ...]]:
    """Give each process cores of its own; one core each, in turn, where there are more processes than cores."""
    if processes >= len(cores):
        return [(cores[n % len(cores)],) for n in range(processes)]
    ends = [round(n * len(cores) / processes) for n in range(processes + 1)]
    return [tuple(cores[a:b]) for a, b in pairwise(ends)]


def threads(cores: int, processes: int, granted: float | None) -> int:
    """How many threads of torch a process starts that has so many cores and shares what is granted; at least one."""
    return max(1, cores if granted is None else min(cores, int(granted // processes)))


@contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """What is started within runs on these cores from its first instruction; on all of ours where none are named."""
    if not cores:
        yield
        return
    ours = os.sched_getaffinity(0)
    # A core that was taken away meanwhile is no reason not to start.
    with suppress(OSError):
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setaffinity(0, ours)
