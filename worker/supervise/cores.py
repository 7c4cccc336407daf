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

_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def usable() -> list[int]:
    """Return the cores that this process may run on; the threads of one physical core stand side by side."""
    if not hasattr(os, "sched_getaffinity"):
        return list(range(os.cpu_count() or 1))
    return sorted(os.sched_getaffinity(0), key=lambda core: (_first_sibling(core), core))


def _first_sibling(core: int) -> int:
    with suppress(OSError, ValueError):
        return int(Path(_TOPOLOGY.format(core)).read_text().replace("-", ",").split(",")[0])
    return core


def share_out(cores: Sequence[int], processes: int) -> list[tuple[int, ...]]:
    """Give each process cores of its own; with more processes than cores, each gets one, in turn."""
    if processes >= len(cores):
        return [(cores[n % len(cores)],) for n in range(processes)]
    ends = [round(n * len(cores) / processes) for n in range(processes + 1)]
    return [tuple(cores[a:b]) for a, b in pairwise(ends)]


def threads(cores: int, processes: int, granted: float | None) -> int:
    """Return how many threads of torch a process starts; at least one.

    Args:
        cores: How many cores it has.
        processes: How many processes share what is granted.
        granted: The processor time that the control groups grant, in cores; None for no limit.
    """
    return max(1, cores if granted is None else min(cores, int(granted // processes)))


@contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """Pin what starts in the `with` to these cores, from its first instruction; to all of ours if there are none."""
    if not cores:
        yield
        return
    ours = os.sched_getaffinity(0)
    # A core that went away meanwhile is no reason not to start.
    with suppress(OSError):
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setaffinity(0, ours)
