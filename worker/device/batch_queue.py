"""Images of all chunks wait here for the device, and leave in batches.

A batch holds images of one key (model, layers, size, precision), of several chunks if need be, those of the chunk taken
first before others. It leaves when it is full, when nothing more of its key comes, or when its first image has waited
long: a slow server must not keep the device from what is there.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Generic, NamedTuple, TypeVar

T = TypeVar("T")
#: How long an image waits for its batch to fill up.
LINGER_S: Final = 1.0
#: Batches of results of one key that may be under way behind the device: memory stays flat when the store is slow.
_BEHIND: Final = 2


class BatchKey(NamedTuple):
    """What images must have in common to share a batch."""

    #: What the best batch size depends on, in words: `batches.size_key`.
    size: str
    #: The identity of the model.
    model: int
    #: What is explained and drawn, on what, and how pictures and answers are read, in words.
    drawn: str


@dataclass(eq=False)
class Stream(Generic[T]):
    """The images of one chunk on their way to the device. Only `BatchQueue` changes it."""

    key: BatchKey
    #: The lower, the sooner: priority, then the chunk's place among those taken.
    order: tuple[int, int]
    job: str
    #: When its chunk came into flight, in seconds of the monotonic clock.
    since: float
    #: How many of its images are still to arrive.
    coming: int
    #: The most images of a batch with one of these.
    most: int
    #: How many were dispatched and have not left for the device.
    ahead: int = 0
    closed: bool = False
    #: What has arrived, with its time.
    waiting: deque[tuple[float, T]] = field(default_factory=deque)


@dataclass(frozen=True)
class Batch(Generic[T]):
    """What goes through the network at once."""

    items: list[T]
    #: The streams they come from, the first taken first.
    streams: list[Stream[T]]
    #: Whether it says anything of its size: it was full, or nothing more came. One that left early does not.
    telling: bool


class BatchQueue(Generic[T]):
    """Images that wait for the device; safe to share between threads.

    Args:
        size: The size of the batches of a key, which may change between two calls.
        linger_s: How long an image waits for others.
    """

    def __init__(self, size: Callable[[BatchKey], int], *, linger_s: float = LINGER_S) -> None:
        self._size, self._linger_s = size, linger_s
        self._changed = threading.Condition()
        self._streams: list[Stream[T]] = []
        #: Key → how many images have left and are not finished.
        self._behind: Counter[BatchKey] = Counter()

    def open(
        self,
        key: BatchKey,
        *,
        order: tuple[int, int],
        count: int,
        job: str = "",
        since: float = 0.0,
        most: int = sys.maxsize,
    ) -> Stream[T]:
        """Announce the images of a chunk.

        Args:
            key: What may share a batch.
            order: The lowest goes first: the rank of the job's priority, then the chunk's place among those taken.
            count: How many images come.
            job: Whose.
            since: When the chunk came into flight, in seconds of the monotonic clock.
            most: The most images of a batch with one of these.
        """
        stream: Stream[T] = Stream(key, order, job, since, coming=count, most=most)
        with self._changed:
            self._streams.append(stream)
            self._streams.sort(key=lambda each: each.order)
        return stream

    def dispatch(self, stream: Stream[T]) -> None:
        """Take note that one more image is on its way."""
        with self._changed:
            stream.ahead += 1

    def put(self, stream: Stream[T], item: T) -> None:
        """An image has arrived. One of a closed stream is dropped."""
        with self._changed:
            if stream.closed:
                return
            stream.coming -= 1
            stream.waiting.append((time.monotonic(), item))
            self._changed.notify_all()

    def lose(self, stream: Stream[T]) -> None:
        """An image that was on its way does not arrive: nobody shall wait for it."""
        with self._changed:
            if not stream.closed:
                stream.coming -= 1
                stream.ahead -= 1
                self._changed.notify_all()

    def close(self, stream: Stream[T]) -> None:
        """Nothing more comes; what waits is dropped."""
        with self._changed:
            stream.closed = True
            stream.waiting.clear()
            stream.coming = stream.ahead = 0
            if stream in self._streams:
                self._streams.remove(stream)
            self._changed.notify_all()

    def ahead(self, stream: Stream[T]) -> int:
        """How many images of a stream were dispatched and have not left for the device."""
        with self._changed:
            return stream.ahead

    def hungry(self) -> bool:
        """Whether fewer images are ahead of the device than its smallest batch has."""
        with self._changed:
            ahead = sum(stream.ahead for stream in self._streams)
            return all(ahead < min(self._size(stream.key), stream.most) for stream in self._streams)

    def take(self) -> Batch[T]:
        """Wait for the next batch."""
        with self._changed:
            while True:
                batch, within_s = self._next(time.monotonic())
                if batch is not None:
                    return batch
                self._changed.wait(within_s)

    def finished(self, key: BatchKey) -> None:
        """An image that has left is finished, whatever came of it."""
        with self._changed:
            self._behind[key] -= 1
            if not self._behind[key]:
                del self._behind[key]
            self._changed.notify_all()

    def _next(self, now: float) -> tuple[Batch[T] | None, float | None]:
        """The batch that may leave now, or how long to wait for one at most."""
        within_s: float | None = None
        for key in dict.fromkeys(stream.key for stream in self._streams):
            streams = [stream for stream in self._streams if stream.key == key]
            full = [stream for stream in streams if stream.waiting]
            if not full:
                continue
            size = min(self._size(key), *(stream.most for stream in full))
            if self._behind[key] > _BEHIND * size:
                continue
            telling = sum(len(stream.waiting) for stream in full) >= size or not any(
                stream.coming for stream in streams
            )
            left_s = self._linger_s - (now - min(stream.waiting[0][0] for stream in full))
            if telling or left_s <= 0:
                return self._leave(full, size, telling), None
            within_s = left_s if within_s is None else min(within_s, left_s)
        return None, within_s

    def _leave(self, streams: list[Stream[T]], size: int, telling: bool) -> Batch[T]:
        items: list[T] = []
        used: list[Stream[T]] = []
        for stream in streams:
            count = min(size - len(items), len(stream.waiting))
            if count:
                items += [stream.waiting.popleft()[1] for _ in range(count)]
                stream.ahead -= count
                used.append(stream)
        self._behind[streams[0].key] += len(items)
        return Batch(items, used, telling)
