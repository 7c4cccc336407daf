"""How many images go through the network at once: found by trying, for each network, size and device."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

#: Where the search begins: small enough for any device, large enough to tell something.
FIRST = 4
#: A size is judged by the fastest of so many batches, and before it is found no better by twice as many: what else the
#: machine does only ever slows one down.
_TRIES = 3
#: Twice the size has to be so much faster an image, or it is not worth its memory and the wait for it.
_WORTH = 1.03


@dataclass
class _Search:
    """The state of one search."""

    size: int
    ceiling: int
    over: bool = False
    #: size → images/s of each batch of that size
    speeds: dict[int, list[float]] = field(default_factory=dict)


class BatchSizes:
    """The batch size of each kind of work, found while working; safe to share between threads.

    The size doubles while that makes an image faster and memory allows, then stays. A batch that did not fit makes half
    of it the most that is ever tried again.

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
            return self._search(key).size

    def ran(self, key: str, size: int, seconds: float) -> None:
        """Take note of a batch that fitted; one of another size than asked for (the last of a chunk) tells nothing."""
        with self._lock:
            search = self._search(key)
            if search.over or size != search.size:
                return
            speeds = search.speeds.setdefault(size, [])
            speeds.append(size / max(seconds, 1e-9))
            if len(speeds) < _TRIES:
                return
            before = search.speeds.get(size // 2)
            if before is not None and max(speeds) < _WORTH * max(before):
                if len(speeds) >= 2 * _TRIES:
                    self._end(key, search, size // 2)
            elif 2 * size <= search.ceiling and self._allows():
                search.size = 2 * size
            else:
                self._end(key, search, size)

    def too_large(self, key: str, size: int) -> None:
        """Take note of a batch that did not fit into the memory of the device."""
        with self._lock:
            search = self._search(key)
            search.ceiling = max(1, min(search.ceiling, size // 2))
            if search.size > search.ceiling:
                self._end(key, search, search.ceiling)

    def _search(self, key: str) -> _Search:
        search = self._searches.get(key)
        if search is None:
            known = self._recall(key)
            search = _Search(min(known or FIRST, self._limit), self._limit, over=known is not None)
            self._searches[key] = search
        return search

    def _end(self, key: str, search: _Search, size: int) -> None:
        search.size, search.over = size, True
        log.info("action=batch_size %s: %d images a batch.", key, size)
        self._remember(key, size)
