"""How many images go through the network at once: found by trying, for each network, size and device."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

#: Where the search begins: small enough for any device, large enough to tell something.
FIRST = 4
#: How often a size is tried before a larger one is: its first batch is slow, as kernels are chosen and memory is got.
_FIRST_TRIES = 2
#: How often all sizes are tried after that, by turns: what else the machine does must not be held against one of them.
ROUNDS = 3
#: Nothing larger is tried than a size at which an image takes twice as long as at the best.
_MUCH_SLOWER = 0.5
#: The smallest size is taken that is nearly as fast as the fastest: a small batch is less memory and less to wait for.
_NEARLY = 0.97


#: A batch that takes longer is not worth it: a process that is to stop finishes the one in hand.
LONGEST_S = 4.0
#: So many batches smaller than the size tried say that it is never reached.
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
    #: How many batches were smaller than what was asked for.
    short: int = 0
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
        """Take note of a batch that fitted; one of another size than asked for (the last of a chunk) tells nothing."""
        with self._lock:
            search = self._search(key)
            if search.over or size != search.size:
                self._fell_short(key, search, size)
                return
            speeds = search.speeds.setdefault(size, [])
            speeds.append(size / max(seconds, 1e-9))
            if len(speeds) < _FIRST_TRIES:
                return
            if search.round == 0 and self._grows(search):
                return
            self._go_on(key, search)

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
                self._go_on(key, search)

    def _fell_short(self, key: str, search: _Search, size: int) -> None:
        """Chunks that are smaller than the size that is tried never fill a batch: it is left out."""
        search.short += size < search.size
        if not search.over and search.short >= _SHORT:
            search.short, search.ceiling = 0, max(1, search.size // 2)
            search.sizes = [each for each in search.sizes if each < search.size] or [search.ceiling]
            self._go_on(key, search)

    def _search(self, key: str, known: int | None = None) -> _Search:
        search = self._searches.get(key)
        if search is None:
            size = min(known or FIRST, self._limit)
            search = self._searches[key] = _Search(size, self._limit, [size], over=known is not None)
        return search

    def _grows(self, search: _Search) -> bool:
        best = {size: max(speeds) for size, speeds in search.speeds.items()}
        if 2 * search.size / best[search.size] > LONGEST_S:
            return False
        larger = min(2 * search.size, search.ceiling)
        if larger <= search.size or best[search.size] < _MUCH_SLOWER * max(best.values()) or not self._allows():
            return False
        search.sizes.append(larger)
        search.size = larger
        return True

    def _go_on(self, key: str, search: _Search) -> None:
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
        log.info("action=batch_size %s: %d images a batch.", key, size)
        self._remember(key, size)
