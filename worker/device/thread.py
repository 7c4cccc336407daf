"""The one thread that uses the device.

CUDA's streams and torch's own threads belong to the thread that calls them, so that one thread makes all calls. Batches
of several chunks wait in its row: while one chunk's last pictures are uploaded and the first of the next are fetched,
there is something to compute.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import PriorityQueue
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")
#: Between two chunks of one job that follow each other.
_SAME_RUN_S = 5.0


@dataclass(frozen=True)
class Ran(Generic[_T]):
    """What a batch came to."""

    value: _T
    #: When it began, in seconds of the monotonic clock.
    began: float
    #: How long it took.
    seconds: float
    #: How long the device had nothing to do before it, while there was a chunk to be worked at.
    idle_s: float


class DeviceThread:
    """Runs batches one at a time, those of the chunk that was taken first before others."""

    def __init__(self) -> None:
        self._row: PriorityQueue[tuple[int, int, _Batch]] = PriorityQueue()
        self._numbers = itertools.count()
        self._job, self._ended = "", 0.0
        threading.Thread(target=self._go_on, name="device", daemon=True).start()

    def submit(self, run: Callable[[], _T], *, order: int, job: str, since: float) -> Future[Ran[_T]]:
        """Put a batch into the row.

        Args:
            run: Computes it; what it raises is raised by the future.
            order: Of the chunk: the lowest goes first.
            job: Whose batch; between two batches of one job the device should not be idle at all.
            since: When the chunk came into hand, in seconds of the monotonic clock: before that nothing was missing.
        """
        future: Future[Ran[_T]] = Future()
        self._row.put((order, next(self._numbers), _Batch(run, future, job, since)))
        return future

    def _go_on(self) -> None:
        while True:
            self._run(self._row.get()[2])

    def _run(self, batch: _Batch) -> None:
        if not batch.future.set_running_or_notify_cancel():
            return
        began = time.monotonic()
        # A job that stood still for longer had no work to give, or was paused.
        same = batch.job == self._job and batch.since - self._ended < _SAME_RUN_S
        idle_since = self._ended if same else max(self._ended, batch.since)
        try:
            value = batch.run()
        except BaseException as error:
            self._job, self._ended = batch.job, time.monotonic()
            batch.future.set_exception(error)
            return
        self._job, self._ended = batch.job, time.monotonic()
        batch.future.set_result(Ran(value, began, self._ended - began, max(began - idle_since, 0.0)))


@dataclass(frozen=True)
class _Batch:
    run: Callable[[], Any]
    future: Future[Any]
    job: str
    since: float
