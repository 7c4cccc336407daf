"""The one thread that gives the device its work, and the one that waits for what comes of it.

CUDA's streams and torch's own threads belong to the thread that calls them, so that one thread launches all batches.
Models are loaded, and let go, by the threads of chunks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Generic, Protocol, TypeVar

from worker.device.batch_queue import Batch, BatchQueue, Stream

log = logging.getLogger(__name__)


class Launched(Protocol):
    """A batch that the device was given."""

    @property
    def overlaps(self) -> bool:
        """Whether the device works at it by itself: the next batch can be launched meanwhile."""


T = TypeVar("T")
L = TypeVar("L", bound=Launched)
#: Between two chunks of one job that follow each other.
_SAME_RUN_S = 5.0


@dataclass(frozen=True)
class DeviceTime:
    """When the device was at work, in seconds."""

    #: When it began, of the monotonic clock.
    began: float
    #: For how long it worked.
    seconds: float
    #: For how long it had nothing to do before, while there was a chunk in flight.
    idle_s: float


class DeviceThread(Generic[T, L]):
    """Takes batches and launches them, one after the other.

    A GPU works at a batch by itself. The next is launched meanwhile, so that it follows without a gap, and a second
    thread waits for each to end. A CPU has nothing but the thread that computes: there a batch ends before the next.

    Args:
        queue: Where they wait. It lets no batch leave while too many are under way.
        launch: Launches what a batch becomes. It raises nothing.
        finish: Waits for one of them to end and passes it on; called in their order. It raises nothing, and gives back
            when the device was at work, by what it is told: a function of the time at which it has ended.
    """

    def __init__(
        self,
        queue: BatchQueue[T],
        launch: Callable[[Batch[T]], Iterable[L]],
        finish: Callable[[L, Callable[[], DeviceTime]], None],
    ) -> None:
        self._queue, self._launch, self._finish = queue, launch, finish
        self._under_way: SimpleQueue[tuple[L, Stream[T], float]] = SimpleQueue()
        self._job, self._ended = "", 0.0
        threading.Thread(target=self._run, name="device", daemon=True).start()
        threading.Thread(target=self._wait, name="device-results", daemon=True).start()

    def _run(self) -> None:
        while True:
            batch = self._queue.take()
            began = time.monotonic()
            try:
                for launched in self._launch(batch):
                    if launched.overlaps:
                        self._under_way.put((launched, batch.streams[0], began))
                    else:
                        self._end(launched, batch.streams[0], began)
                    began = time.monotonic()
            except Exception:
                # Without this thread nothing would ever be computed again, and nobody would see why.
                log.exception("action=bug A batch could not be handled.")

    def _wait(self) -> None:
        while True:
            self._end(*self._under_way.get())

    def _end(self, launched: L, stream: Stream[T], launched_at: float) -> None:
        def ended() -> DeviceTime:
            """Take note that it has ended now."""
            now = time.monotonic()
            began = max(launched_at, self._ended)
            idle_s = self._idle_s(stream, began)
            self._job, self._ended = stream.job, now
            return DeviceTime(began, now - began, idle_s)

        try:
            self._finish(launched, ended)
        except Exception:
            log.exception("action=bug What came of a batch could not be handled.")

    def _idle_s(self, stream: Stream[T], began: float) -> float:
        # A job that stood still for longer had no work to give, or was paused.
        same = stream.job == self._job and stream.since - self._ended < _SAME_RUN_S
        return max(began - (self._ended if same else max(self._ended, stream.since)), 0.0)
