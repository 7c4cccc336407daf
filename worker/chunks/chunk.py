"""A chunk in flight is bookkeeping: which of its images are still on their way through the pipeline."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from worker.device.batch_queue import BatchKey
from worker.device.batches import size_key

if TYPE_CHECKING:
    from producer.jobs.table.table import Claim
    from worker.chunks.item import ImageTask
    from worker.chunks.lease import Lease
    from worker.chunks.recorder import Ended
    from worker.models.networks import Network


@dataclass(frozen=True)
class Completed:
    """What came of an image: its end, or whose fault it was that it has none."""

    task: ImageTask
    ended: Ended | None = None
    error: BaseException | None = None


@dataclass(eq=False)
class ChunkContext:
    """A claimed chunk, what its images need, and where each of them is; safe to share between threads."""

    claim: Claim
    network: Network
    lease: Lease
    #: The lower, the sooner the device computes its images.
    order: int
    #: When it came into flight, in seconds of the monotonic clock.
    since: float
    _lock: threading.Lock = field(default_factory=threading.Lock)
    #: Offset → the image on its way.
    _in_flight: dict[int, ImageTask] = field(default_factory=dict)
    #: What has come out of the pipeline; None: an image has left for the device.
    _out: SimpleQueue[Completed | float | None] = field(default_factory=SimpleQueue)
    _closed: bool = False

    def batch_key(self) -> BatchKey:
        """What its images have in common: the model itself, and how it is asked."""
        spec = self.claim.spec
        return BatchKey(size_key(self.network, spec), id(self.network.model), spec.output_size)

    def enter(self, task: ImageTask) -> None:
        """Take note of an image that begins its way."""
        with self._lock:
            self._in_flight[task.offset] = task

    def in_flight(self) -> list[ImageTask]:
        """The images on their way."""
        with self._lock:
            return list(self._in_flight.values())

    def goes_on(self, task: ImageTask, *, computed: bool = False) -> bool:
        """Whether an image goes on to its next stage: it was not dropped, nor given up.

        Args:
            task: The image.
            computed: Whether it leaves for the device now: then it is dropped only if the chunk breaks off.
        """
        with self._lock:
            goes_on = self._in_flight.get(task.offset) is task and not self._closed
            task.left_for_device = task.left_for_device or (goes_on and computed)
            return goes_on

    def complete(self, task: ImageTask, ended: Ended | None = None, error: BaseException | None = None) -> None:
        """An image has come out; of one that was given up nobody wants to know."""
        with self._lock:
            if self._in_flight.get(task.offset) is not task:
                return
            del self._in_flight[task.offset]
            self._out.put(Completed(task, ended, error))

    def give_up(self, task: ImageTask) -> bool:
        """Take an image out that a thread still has, and may have for ever; False when it has just come out."""
        with self._lock:
            return self._in_flight.pop(task.offset, None) is not None

    def drop_early(self) -> None:
        """Take out every image that has not left for the device."""
        with self._lock:
            self._in_flight = {offset: task for offset, task in self._in_flight.items() if task.left_for_device}

    def break_off(self) -> None:
        """Nothing that is not running now runs any more."""
        with self._lock:
            self._closed = True

    def wake(self) -> None:
        """Make `next_completed` return."""
        self._out.put(None)

    def add_idle(self, seconds: float) -> None:
        """Take note of time that the device had nothing to do."""
        self._out.put(seconds)

    def unfinished(self) -> bool:
        """Whether images are on their way, or have come out and wait to be recorded."""
        with self._lock:  # what comes out is put there before this lock is free again
            return bool(self._in_flight) or not self._out.empty()

    def next_completed(self, timeout_s: float) -> Completed | float | None:
        """What has come out next; None when nothing has, or when an image has left for the device."""
        try:
            return self._out.get(timeout=timeout_s)
        except Empty:
            return None
