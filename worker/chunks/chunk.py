"""A chunk in flight is bookkeeping: which of its images are still on their way through the pipeline, and how far."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from producer.jobs.model.errors import ModelError
from producer.jobs.model.waits import waiting
from producer.jobs.tracing.traces import NO_SPAN, Span
from worker.device.batch_queue import BatchKey
from worker.device.batches import size_key

if TYPE_CHECKING:
    from producer.jobs.model.errors import ItemError
    from producer.jobs.model.items import Item
    from producer.jobs.model.results import Failure, Result
    from producer.jobs.table.claims import Claim
    from worker.chunks.lease import Lease
    from worker.device.batches import Explained
    from worker.models.networks import Network
    from worker.pictures.decode import Picture
    from worker.pictures.geometry import Frame

#: Stages that talk to servers have limits of their own, with all their retries; this much later they hang.
_NETWORK_S = 600.0
_OF_SERVERS = frozenset({"fetch", "upload"})
#: What is said of stages that take long.
_WORK = {"decode": "an image to be decoded", "render": "pictures to be drawn", "encode": "pictures to be encoded"}


def longest_stage_s(limit_s: float) -> float:
    """How long any stage may take, one that talks to servers included.

    Args:
        limit_s: How long a stage may take that does not.
    """
    return limit_s + _NETWORK_S


@dataclass(eq=False)
class ImageTask:
    """One item on its way through the stages; one thread at a time works at it."""

    chunk: ChunkContext
    offset: int
    item: Item
    #: stage → seconds of work
    seconds: dict[str, float] = field(default_factory=dict)
    #: stage → seconds that it waited for a thread, or for the device, to be free for it
    waits: dict[str, float] = field(default_factory=dict)
    #: Since when it waits for its next stage, in seconds of the monotonic clock.
    waiting_since: float | None = None
    #: The stage it is in and since when, in seconds of the monotonic clock.
    stage: tuple[str, float] | None = None
    #: The class asked for of this image alone, or several; -1 is the predicted one.
    asked: int | tuple[int, ...] | None = None
    #: The class that its label means.
    label: int | None = None
    #: Why its label means none, in a sentence; None too where it has no label.
    label_problem: str | None = None
    #: What is drawn on: (H, W, 3) uint8 RGB, of the network's size or the original's.
    picture: Picture | None = None
    #: The way back to the original's geometry.
    frame: Frame | None = None
    #: What the network reads, before mean and standard deviation: (H, W, C) uint8.
    input: Picture | None = None
    #: One a class, once explained.
    explained: list[Explained] = field(default_factory=list)
    #: How many classes are above the job's threshold, where it has one.
    above: int | None = None
    #: Why it fails alone.
    error: ItemError | None = None
    #: Whether it left for the device: what has not is dropped when the process stops.
    left_for_device: bool = False
    #: Whether it counts as being behind the device.
    behind: bool = False

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Measure one stage's work on this image."""
        started = time.monotonic()
        self.begun(stage, started)
        self.stage = (stage, started)
        try:
            # Where a server is waited for, it says so itself.
            with nullcontext() if stage in _OF_SERVERS else waiting(_WORK.get(stage, stage), server=False):
                yield
        finally:
            self.stage = None
            took_s = time.monotonic() - started
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + took_s, 6)
            self.chunk.span.stage(stage, started, took_s)

    def waits_from_now(self) -> None:
        """It has been put into the row of its next stage."""
        self.waiting_since = time.monotonic()

    def begun(self, stage: str, at: float) -> None:
        """A stage took it out of its row, at a time of the monotonic clock."""
        if self.waiting_since is not None:
            self.waits[stage] = self.waits.get(stage, 0.0) + max(at - self.waiting_since, 0.0)
            self.waiting_since = None

    def computed(self, answer: list[Explained] | ModelError, began: float, seconds: float) -> None:
        """Take the device's answer.

        Args:
            answer: One explanation a class, or why there is none.
            began: When its batch began, in seconds of the monotonic clock.
            seconds: Its share of the batch's time.
        """
        self.begun("explain", began)
        self.seconds["explain"], self.input = round(seconds, 6), None
        if isinstance(answer, ModelError):
            self.error = answer
        else:
            # A label that was predicted is explained once.
            self.explained = list({each.class_id: each for each in answer}.values())
        self.waits_from_now()

    def overdue(self, limit_s: float) -> str | None:
        """The stage this image is in for longer than it may; None when it is not."""
        stage = self.stage
        if stage is None:
            return None
        name, since = stage
        allowed_s = limit_s + (_NETWORK_S if name in _OF_SERVERS else 0)
        return name if time.monotonic() - since > allowed_s else None


@dataclass(frozen=True)
class Ended:
    """An item's end, to be recorded."""

    offset: int
    result: Result
    failure: Failure | None
    #: Where pictures are packed: member name → content, until they are in the shard.
    files: Mapping[str, bytes] = field(default_factory=dict)
    #: stage → seconds it waited for that stage
    waits: Mapping[str, float] = field(default_factory=dict)
    #: Why its label is no class of the network, in a sentence.
    label_problem: str | None = None


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
    #: Is told when which stages were at work.
    span: Span = NO_SPAN
    _lock: threading.Lock = field(default_factory=threading.Lock)
    #: Offset → the image on its way.
    _in_flight: dict[int, ImageTask] = field(default_factory=dict)
    #: What has come out of the pipeline; None: an image has left for the device.
    _out: SimpleQueue[Completed | float | None] = field(default_factory=SimpleQueue)
    _closed: bool = False

    def batch_key(self) -> BatchKey:
        """What its images have in common: the model itself, and how it is asked."""
        spec, network = self.claim.spec, self.network
        # Those of a job, on a model that jobs share.
        asked = f"{spec.direction} mean {network.mean} std {network.std} {network.output}"
        drawn = f"{asked} {spec.output_size} {','.join(spec.outputs)} {spec.raw}"
        return BatchKey(size_key(network, spec), id(network.model), drawn)

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
            goes_on = self._goes_on(task)
            if goes_on and computed:
                task.left_for_device = task.behind = True
            return goes_on

    def arrive(self, task: ImageTask, then: Callable[[], None]) -> bool:
        """Do what follows an image's first stages, if it goes on; nobody gives it up meanwhile."""
        with self._lock:
            goes_on = self._goes_on(task)
            if goes_on:
                then()
            return goes_on

    def leaves_behind(self, task: ImageTask) -> bool:
        """Whether an image counted as being behind the device until now; it does not any more."""
        with self._lock:
            behind, task.behind = task.behind, False
            return behind

    def _goes_on(self, task: ImageTask) -> bool:
        return self._in_flight.get(task.offset) is task and not self._closed

    def complete(self, task: ImageTask, ended: Ended | None = None, error: BaseException | None = None) -> None:
        """An image has come out; of one that was given up nobody wants to know."""
        with self._lock:
            if self._in_flight.get(task.offset) is not task:
                return
            del self._in_flight[task.offset]
            self._out.put(Completed(task, ended, error))

    def give_up(self, task: ImageTask, then: Callable[[], None]) -> bool:
        """Take an image out that a thread still has, and may have for ever; False when it has just come out.

        Args:
            task: The image.
            then: Called at once if it is taken out.
        """
        with self._lock:
            if self._in_flight.get(task.offset) is not task:
                return False
            del self._in_flight[task.offset]
            then()
            return True

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
