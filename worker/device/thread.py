"""The one thread that computes on the device.

CUDA's streams and torch's own threads belong to the thread that calls them, so that one thread computes all batches.
Models are loaded, and let go, by the threads of chunks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from worker.device.batch_queue import Batch, BatchQueue, Stream

log = logging.getLogger(__name__)

T = TypeVar("T")
#: Between two chunks of one job that follow each other.
_SAME_RUN_S = 5.0


class DeviceThread(Generic[T]):
    """Takes batches and computes them, one at a time.

    Args:
        queue: Where they wait.
        compute: Computes one. It gets the batch, and for how many seconds the device had nothing to do before it while
            there was a chunk in flight. It raises nothing.
    """

    def __init__(self, queue: BatchQueue[T], compute: Callable[[Batch[T], float], None]) -> None:
        self._queue, self._compute = queue, compute
        self._job, self._ended = "", 0.0
        threading.Thread(target=self._run, name="device", daemon=True).start()

    def _run(self) -> None:
        while True:
            batch = self._queue.take()
            first = batch.streams[0]
            idle_s = self._idle_s(first)
            try:
                self._compute(batch, idle_s)
            except Exception:
                # Without this thread nothing would ever be computed again, and nobody would see why.
                log.exception("action=bug A batch could not be handled.")
            self._job, self._ended = first.job, time.monotonic()

    def _idle_s(self, stream: Stream[T]) -> float:
        # A job that stood still for longer had no work to give, or was paused.
        same = stream.job == self._job and stream.since - self._ended < _SAME_RUN_S
        return max(time.monotonic() - (self._ended if same else max(self._ended, stream.since)), 0.0)
