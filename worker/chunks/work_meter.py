"""How fast a process is and how busy its device, over the last minute; what `gradcam workers` shows."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

#: Over how many seconds.
_WINDOW_S: Final = 60.0
#: So many batches are remembered; a device with more in a minute is measured over less.
_MOST_BATCHES: Final = 1000
_SHORTEST_S: Final = 1.0


class WorkMeter:
    """Takes note of batches; safe to share between threads.

    Args:
        clock: Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        #: When each batch ended, its images, and its seconds on the device.
        self._batches: deque[tuple[float, int, float]] = deque(maxlen=_MOST_BATCHES)
        self._network: str | None = None

    def computed(self, network: str, images: int, seconds: float) -> None:
        """Take note of a batch that has ended.

        Args:
            network: Its full name.
            images: How many it held.
            seconds: For how long the device worked at it.
        """
        with self._lock:
            self._network = network
            self._batches.append((self._clock(), images, seconds))

    def facts(self) -> dict[str, str | float | int | None]:
        """Network and size of the last batch; images/s and busy share since the last minute's first batch began."""
        with self._lock:
            now = self._clock()
            last = self._batches[-1][1] if self._batches else None
            fresh = [batch for batch in self._batches if now - batch[0] < _WINDOW_S]
            network = self._network
        if not fresh:
            return {"network": network, "batch_size": last, "images_per_s": 0.0, "busy": 0.0}
        first_end, _, first_s = fresh[0]
        over_s = max(min(now - first_end + first_s, _WINDOW_S), _SHORTEST_S)
        return {
            "network": network,
            "batch_size": last,
            "images_per_s": round(sum(images for _, images, _ in fresh) / over_s, 2),
            "busy": round(min(sum(seconds for *_, seconds in fresh) / over_s, 1.0), 3),
        }
