"""How many images go through the network at once: a search by trial, for each network, size and device."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

#: The first size of the search: it fits any device, and tells something.
FIRST = 4
#: How often a size is tried before a larger one: its first batch is slow, as it chooses kernels and gets memory.
_FIRST_TRIES = 2
#: How often all sizes are tried after that, in turn: other work of the machine must not count against one of them.
ROUNDS = 3
#: A size at which an image takes twice as long as at the best is the last one tried.
_MUCH_SLOWER = 0.5
#: The smallest size that is nearly as fast as the fastest wins: it takes less memory and less time.
_NEARLY = 0.97


#: No batch should take longer: a stopping process finishes its current one.
LONGEST_S = 4.0
#: After so many smaller batches the size counts as never reached.
_SHORT = 16


@dataclass
class _Search:
    """The state of one search."""

    size: int
    ceiling: int
    #: What is tried, ascending.
    sizes: list[int]
    #: 0 while it grows, then the round.
    round: int = 0
    over: bool = False
    #: size → images/s of each batch of that size
    speeds: dict[int, list[float]] = field(default_factory=dict)


class BatchSizes:
    """The batch size of each kind of work, found while working; safe to share between threads.

    The size doubles while memory allows and images do not take much longer, then all sizes are tried by turns, and the
    best stays. A batch that did not fit makes half of it the most that is ever tried again.

    Args:
        limit: The largest size.
        recall: Gives the size that a search of the same key ended with, in this process or another; None if none did.
        remember: Takes note of it.
        allows: Whether the memory allows twice the batch that ran last.
    """

    def __init__(
        self,
        limit: int,
        *,
        recall: Callable[[str], int | None] = lambda _: None,
        remember: Callable[[str, int], None] = lambda _key, _size: None,
        allows: Callable[[], bool] = lambda: True,
    ) -> None:
        self._limit, self._recall, self._remember, self._allows = limit, recall, remember, allows
        self._lock = threading.Lock()
        self._searches: dict[str, _Search] = {}
        #: What was found and nobody was told yet: keys and sizes.
        self._found: list[tuple[str, int]] = []

    def size(self, key: str) -> int:
        """How many images the next batch should have.

        Args:
            key: What the size depends on: network, layers, input size, method, precision, device.
        """
        with self._lock:
            search = self._searches.get(key)
        # Outside of the lock: whoever is asked may be away.
        known = self._recall(key) if search is None else None
        with self._lock:
            return self._search(key, known).size

    def ran(self, key: str, size: int, seconds: float) -> None:
        """Take note of a batch that fitted.

        One of another size than asked for tells nothing: it was the last of a job, or there were no more images.
        """
        with self._lock:
            search = self._search(key)
            if search.over or size != search.size:
                return
            speeds = search.speeds.setdefault(size, [])
            speeds.append(size / max(seconds, 1e-9))
            if len(speeds) < _FIRST_TRIES:
                return
            if search.round == 0 and self._try_larger(search):
                return
            self._next_size(key, search)
        self._tell()

    def too_large(self, key: str, size: int) -> None:
        """Take note of a batch that did not fit into the memory of the device."""
        with self._lock:
            search = self._search(key)
            search.ceiling = max(1, min(search.ceiling, size // 2))
            search.sizes = [each for each in search.sizes if each <= search.ceiling] or [search.ceiling]
            if search.over:
                # Not for others: what else was on the device in this moment may be gone in the next.
                search.size = min(search.size, search.ceiling)
            elif search.size > search.ceiling:
                self._next_size(key, search)
        self._tell()

    def _search(self, key: str, known: int | None = None) -> _Search:
        search = self._searches.get(key)
        if search is None:
            size = min(known or FIRST, self._limit)
            search = self._searches[key] = _Search(size, self._limit, [size], over=known is not None)
        return search

    def _try_larger(self, search: _Search) -> bool:
        best = {size: max(speeds) for size, speeds in search.speeds.items()}
        if 2 * search.size / best[search.size] > LONGEST_S:
            return False
        larger = min(2 * search.size, search.ceiling)
        if larger <= search.size or best[search.size] < _MUCH_SLOWER * max(best.values()) or not self._allows():
            return False
        search.sizes.append(larger)
        search.size = larger
        return True

    def _next_size(self, key: str, search: _Search) -> None:
        """The next size of the round, or the next round's first."""
        left = [size for size in search.sizes if size > search.size] if search.round else []
        if not left:
            search.round += 1
            left = search.sizes
        search.size = left[0]
        if search.round > ROUNDS or len(search.sizes) == 1:
            best = {size: max(search.speeds.get(size, [0.0])[-ROUNDS:]) for size in search.sizes}
            nearly = _NEARLY * max(best.values())
            self._end(key, search, next(size for size in search.sizes if best[size] >= nearly))

    def _end(self, key: str, search: _Search, size: int) -> None:
        search.size, search.over = size, True
        self._found.append((key, size))

    def _tell(self) -> None:
        """Say what was found, outside of the lock: whoever is told may be away."""
        with self._lock:
            found, self._found = self._found, []
        for key, size in found:
            log.info("action=batch_size %s: %d images a batch.", key, size)
            self._remember(key, size)
