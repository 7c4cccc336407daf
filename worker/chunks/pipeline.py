"""The one pipeline of a process: images of all chunks in flight go through it.

    fetch + decode (threads) ─► batch ─► device (one thread) ─► draw + encode + upload (threads)

Queues between the stages are bounded: a chunk dispatches no more images than fill the next batches, and no batch leaves
while too many results are under way. What has come out goes back to the image's chunk (`chunk_run.py`), which records
and commits it.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from producer.jobs.model.errors import ModelError
from producer.jobs.model.spec import PRIORITIES
from producer.jobs.model.waits import waiting
from worker import metrics
from worker.chunks import stages
from worker.chunks.outcome import failed
from worker.device.batch_queue import Batch, BatchKey, BatchQueue, Stream
from worker.device.batches import Answers, Computation, explain_classes
from worker.device.thread import DeviceThread, DeviceTime

if TYPE_CHECKING:
    from producer.jobs.fetch.fetcher import Fetcher
    from producer.jobs.store.bucket import Storage
    from worker.chunks.chunk import ChunkContext, ImageTask
    from worker.chunks.slots import Slots
    from worker.device.batch_size import BatchSizes
    from worker.models.networks import Network

log = logging.getLogger(__name__)
#: So many at most go through the network at once whose originals are kept to be drawn on: one may have 48 MB.
_MOST_ORIGINALS: Final = 16


@dataclass(frozen=True)
class _Launched:
    """A batch that the device was given, and what is held until it ends."""

    tasks: Sequence[ImageTask]
    key: BatchKey
    computation: Computation
    #: Sizes that did not fit.
    halved: Sequence[int]
    #: Whether its time says anything of its size.
    telling: bool
    #: Ends the leases' steps, and what else counts a batch that is running.
    held: ExitStack

    @property
    def overlaps(self) -> bool:
        return self.computation.overlaps


class Pipeline:
    """Takes images of all chunks through their stages; one per process, its threads live as long as it does.

    Args:
        fetcher: Brings images.
        storage: Where pictures go.
        queue: Where images wait for the device.
        sizes: Learns how fast batches were, and which did not fit.
        slots: Whether this process is stopping, and what runs.
        io_threads: Threads that fetch, and as many that upload.
        item_timeout_s: How long a batch may take.
        computed: Called after each batch with its network, how many images it held, and its seconds on the device.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        storage: Storage,
        queue: BatchQueue[ImageTask],
        sizes: BatchSizes,
        slots: Slots,
        *,
        io_threads: int,
        item_timeout_s: float,
        computed: Callable[[str, int, float], None],
    ) -> None:
        self._fetcher, self._storage, self._queue, self._sizes, self._slots = fetcher, storage, queue, sizes, slots
        self._io_threads, self._item_timeout_s, self._at_work = io_threads, item_timeout_s, computed
        self._before = ThreadPoolExecutor(io_threads, thread_name_prefix="fetch")
        self._behind = ThreadPoolExecutor(io_threads, thread_name_prefix="upload")
        #: The network whose lack of ReLUs was told of last.
        self._told = ""
        DeviceThread(self._queue, self._launch, self._computed)

    # -- for a chunk -----------------------------------------------------------------------------------------------

    def open(self, chunk: ChunkContext, count: int, *, alone: bool = False) -> Stream[ImageTask]:
        """Announce images of a chunk; what they are dispatched with.

        Args:
            chunk: Whose.
            count: How many.
            alone: Whether each goes through the network by itself.
        """
        key = chunk.batch_key()
        self._sizes.size(key.size)  # here, as it may ask Redis
        # What is drawn on originals keeps all of them in memory: fewer wait for the device.
        most = sys.maxsize if chunk.claim.spec.output_size == "input" else _MOST_ORIGINALS
        order = (PRIORITIES.index(chunk.claim.spec.queue), chunk.order)
        return self._queue.open(
            key, order=order, count=count, job=chunk.claim.job, since=chunk.since, most=1 if alone else most
        )

    def close(self, stream: Stream[ImageTask]) -> None:
        """Nothing more of a stream goes to the device."""
        self._queue.close(stream)

    def has_room(self, stream: Stream[ImageTask]) -> bool:
        """Whether one more image may be dispatched now: enough to fill the next batches is ahead of the device."""
        batches = 2 if stream.most == sys.maxsize else 1
        return (
            self._queue.ahead(stream) < batches * min(self._sizes.size(stream.key.size), stream.most) + self._io_threads
        )

    def dispatch(self, task: ImageTask, stream: Stream[ImageTask]) -> None:
        """Send an image on its way."""
        task.chunk.enter(task)
        task.waits_from_now()
        self._queue.dispatch(stream)
        self._before.submit(self._load, task, stream)

    def give_up(self, task: ImageTask, stream: Stream[ImageTask]) -> bool:
        """Do without an image that hangs; False when it has come out meanwhile."""

        def leave() -> None:
            if task.behind:
                task.behind = False
                self._queue.finished(stream.key)
            elif not task.left_for_device:
                self._queue.lose(stream)

        return task.chunk.give_up(task, leave)

    # -- the stages ------------------------------------------------------------------------------------------------

    def _load(self, task: ImageTask, stream: Stream[ImageTask]) -> None:
        chunk = task.chunk
        if self._slots.stopping() or not chunk.goes_on(task):
            return  # its chunk drops it
        error: BaseException | None = None
        try:
            with self._slots.running():
                stages.load(task, self._fetcher, chunk.network, chunk.claim.spec)
        except BaseException as raised:  # told by the chunk's own thread
            error = raised
        if error is None and task.error is None:
            task.waits_from_now()
            chunk.arrive(task, lambda: self._queue.put(stream, task))
        elif chunk.arrive(task, lambda: self._queue.lose(stream)):
            chunk.complete(task, None if error else failed(task), error)

    def _launch(self, batch: Batch[ImageTask]) -> Iterator[_Launched]:
        """Runs in the device's thread."""
        tasks = self._leaving(batch)
        for chunk in {task.chunk for task in batch.items}:
            chunk.wake()  # it may dispatch more while these are computed
        self._slots.wake()
        if tasks:
            # An image that is alone by intent says nothing of the size that pays.
            telling = batch.telling and len(tasks) == len(batch.items) and batch.streams[0].most > 1
            yield from self._explain(tasks, batch.streams[0].key, telling=telling)

    def _leaving(self, batch: Batch[ImageTask]) -> list[ImageTask]:
        """What of a batch is still wanted."""
        if self._slots.stopping():
            # Their chunks drop them; nothing is begun any more.
            leaving: list[ImageTask] = []
        else:
            leaving = [task for task in batch.items if task.chunk.goes_on(task, computed=True)]
        for _ in range(len(batch.items) - len(leaving)):
            self._queue.finished(batch.streams[0].key)
        return leaving

    def _explain(self, tasks: Sequence[ImageTask], key: BatchKey, *, telling: bool) -> Iterator[_Launched]:
        """Launch a batch. What fails in company is launched again by itself: each chunk answers for its own images."""
        with ExitStack() as held:
            halved: list[int] = []
            try:
                computation = self._computation(tasks, held, halved)
            except Exception as error:
                failure = error
            else:
                yield _Launched(tasks, key, computation, halved, telling, held.pop_all())
                return
        chunks = dict.fromkeys(task.chunk for task in tasks)
        if len(chunks) == 1:
            self._failed(tasks, key, failure)
            return
        for chunk in chunks:
            yield from self._explain([task for task in tasks if task.chunk is chunk], key, telling=False)

    def _computation(self, tasks: Sequence[ImageTask], held: ExitStack, halved: list[int]) -> Computation:
        spec, network = tasks[0].chunk.claim.spec, tasks[0].chunk.network
        held.enter_context(self._slots.running())
        held.enter_context(waiting("the device", server=False))
        for chunk in dict.fromkeys(task.chunk for task in tasks):
            held.enter_context(chunk.lease.batch(self._item_timeout_s))
        draw = stages.drawn_by_device(network, spec)
        return explain_classes(
            network,
            [task.input for task in tasks if task.input is not None],
            [task.asked for task in tasks],
            top_k=spec.top_k,
            method=spec.method,
            precision=spec.precision,
            down=spec.direction == "down",
            draw=draw,
            numbers=spec.raw or not draw,
            halved=halved.append,
        )

    def _computed(self, launched: _Launched, ended: Callable[[], DeviceTime]) -> None:
        """Wait for a batch, and pass its images on; in a thread of its own where the device works by itself."""
        tasks, key = launched.tasks, launched.key
        with launched.held:
            try:
                answers = launched.computation.answers()
            except Exception as error:
                ended()
                self._failed(tasks, key, error)
                return
            time = ended()
        tasks[0].chunk.add_idle(time.idle_s)
        for chunk, images in Counter(task.chunk for task in tasks).items():
            chunk.span.stage("explain", time.began, time.seconds * images / len(tasks), images=images)
        for task, answer in zip(tasks, answers, strict=True):
            task.computed(answer, time.began, time.seconds / len(tasks))
            self._behind.submit(self._finish, task, key)
        self._at_work(tasks[0].chunk.network.name, len(tasks), time.seconds)
        metrics.batch(len(tasks))
        self._note_size(launched, time.seconds)
        self._warn_if_unguided(tasks[0].chunk.network, answers)

    def _failed(self, tasks: Sequence[ImageTask], key: BatchKey, error: BaseException) -> None:
        for task in tasks:
            self._finished(task, key)
            task.chunk.complete(task, error=error)

    def _finished(self, task: ImageTask, key: BatchKey) -> None:
        if task.chunk.leaves_behind(task):
            self._queue.finished(key)

    def _finish(self, task: ImageTask, key: BatchKey) -> None:
        chunk = task.chunk
        try:
            if not chunk.goes_on(task):
                chunk.complete(task)
                return
            with self._slots.running():
                ended = stages.finish(task, self._storage)
        except BaseException as error:  # told by the chunk's own thread
            chunk.complete(task, error=error)
        else:
            chunk.complete(task, ended)
        finally:
            self._finished(task, key)

    # -- batch sizes -----------------------------------------------------------------------------------------------

    def _note_size(self, launched: _Launched, seconds: float) -> None:
        size = launched.key.size
        for count in launched.halved:
            metrics.halved()
            self._sizes.too_large(size, count)
        if launched.telling and not launched.halved:
            self._sizes.ran(size, len(launched.tasks), seconds)

    def _warn_if_unguided(self, network: Network, answers: Answers) -> None:
        explained = next((answer[0] for answer in answers if answer and not isinstance(answer, ModelError)), None)
        if explained is not None and explained.guided_relus == 0 and self._told != network.name:
            self._told = network.name
            log.warning("action=unguided %s has no ReLU: its `gb` pictures are the plain gradient.", network.name)
