"""The run of one chunk: its images are marked and dispatched, what comes out is recorded and committed.

Objects come first, then the manifest, then the commit: what is called done is always there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final

from producer.jobs.model.errors import CrashedWorker, ItemError, ItemTimeout, WorkerError
from producer.jobs.model.redaction import redact
from producer.jobs.model.stage_times import IDLE
from worker.chunks.chunk import ImageTask, longest_stage_s
from worker.chunks.outcome import failed
from worker.supervise.deaths import CONVICTING, HUNG

if TYPE_CHECKING:
    from worker.chunks.chunk import ChunkContext, Completed
    from worker.chunks.pipeline import Pipeline
    from worker.chunks.recorder import ResultRecorder
    from worker.chunks.slots import Slot, Slots
    from worker.device.batch_queue import Stream

log = logging.getLogger(__name__)

#: So many images are marked with one call of Redis.
_MARKED: Final = 16
#: How often images that hang are looked for.
_LOOK_EVERY_S: Final = 0.5
#: How long uploads that are under way may take to end when something broke off.
_SETTLE_S: Final = 60.0


class ChunkRun:
    """Takes the images of one chunk through the pipeline; used by one thread.

    Args:
        chunk: Claimed, with its model.
        pipeline: The process's.
        recorder: Records and commits what has ended.
        slots: The process's.
        slot: The chunk's place in it.
        io_threads: How many threads fetch, and how many upload.
        item_timeout_s: How long an image may take in one stage.
    """

    def __init__(
        self,
        chunk: ChunkContext,
        pipeline: Pipeline,
        recorder: ResultRecorder,
        slots: Slots,
        slot: Slot,
        *,
        io_threads: int,
        item_timeout_s: float,
    ) -> None:
        self._chunk, self._pipeline, self._recorder, self._slots, self._slot = chunk, pipeline, recorder, slots, slot
        self._io_threads, self._item_timeout_s = io_threads, item_timeout_s
        self._looked = time.monotonic()

    def run(self) -> bool:
        """Explain all images that are pending.

        Returns:
            Whether all of the chunk is committed. False when the process stops: the rest is still pending.

        Raises:
            LeaseLost: The chunk is not ours any more, or the job goes no further.
            JobError, WorkerError: Somebody else's fault than an image's; what was finished is committed.
        """
        try:
            self._run()
        except BaseException:
            # What is finished stays finished, also under an old token; the first error is the one to tell.
            self._break_off()
            raise
        return self._recorder.complete

    def _run(self) -> None:
        claim = self._chunk.claim
        self._chunk.lease.step(self._item_timeout_s)
        healthy: list[ImageTask] = []
        suspects: list[ImageTask] = []
        for offset in claim.pending:
            task = ImageTask(self._chunk, offset, claim.items[offset])
            task.error = blame(claim.suspects.get(offset, 0))
            if task.error is not None:
                self._recorder.record(failed(task))
            else:
                (suspects if offset in claim.suspects else healthy).append(task)
        self._stream(healthy)
        # Each alone, so that the next death says whose fault it is; last, so that it takes nobody along.
        if suspects:
            self._slots.wait_until_exclusive(
                self._slot,
                lambda: self._chunk.lease.step(self._item_timeout_s),
                limit_s=longest_stage_s(self._item_timeout_s),
            )
        for task in suspects:
            # A thread that hangs at another image would take part: the chunk goes back, and this process retires.
            if not self._slots.stopping() and not self._slots.hanging():
                self._stream([task], alone=True)
        self._recorder.commit()

    # -- images ----------------------------------------------------------------------------------------------------

    def _stream(self, tasks: Sequence[ImageTask], *, alone: bool = False) -> None:
        """Take images through the pipeline, until all have come out or the process stops."""
        stream = self._pipeline.open(self._chunk, len(tasks), alone=alone)
        try:
            to_go = self._marked(tasks)
            task = next(to_go, None)
            while task is not None and not self._slots.stopping():
                if self._pipeline.has_room(stream):
                    self._pipeline.dispatch(task, stream)
                    task = next(to_go, None)
                else:
                    self._collect(stream, _LOOK_EVERY_S)
            if not alone:
                self._slots.all_dispatched(self._slot)
            while self._chunk.unfinished():
                if self._slots.stopping():
                    self._close(stream)
                self._collect(stream, _LOOK_EVERY_S)
        finally:
            self._close(stream)

    def _close(self, stream: Stream[ImageTask]) -> None:
        """What has not left for the device does not."""
        self._pipeline.close(stream)
        self._chunk.drop_early()

    def _marked(self, tasks: Sequence[ImageTask]) -> Iterator[ImageTask]:
        """Images, each of them marked before: those that are on their way when a process dies are suspect."""
        left = iter(tasks)
        while group := list(islice(left, _MARKED)):
            on_their_way = {task.offset for task in self._chunk.in_flight()}
            self._chunk.lease.mark(sorted(on_their_way | {task.offset for task in group}))
            yield from group

    def _collect(self, stream: Stream[ImageTask], timeout_s: float) -> None:
        """Record what has come out, waiting for it; and look for images that hang.

        Raises:
            LeaseLost, JobError, WorkerError: What a stage raised.
        """
        completed = self._chunk.next_completed(timeout_s)
        if isinstance(completed, float):
            self._recorder.add_time(IDLE, completed)
        elif completed is not None:
            self._take(completed)
        self._chunk.lease.step(self._item_timeout_s)
        self._recorder.commit_when_due()
        if time.monotonic() - self._looked >= _LOOK_EVERY_S:
            self._looked = time.monotonic()
            self._give_up_hanging(stream)

    def _take(self, completed: Completed) -> None:
        if completed.error is not None:
            raise completed.error
        if completed.ended is not None:
            self._recorder.record(completed.ended)

    def _break_off(self) -> None:
        """Leave nothing running behind, and record what has ended."""
        self._chunk.break_off()
        self._chunk.drop_early()
        until = time.monotonic() + _SETTLE_S
        while self._chunk.unfinished() and (left_s := until - time.monotonic()) > 0:
            completed = self._chunk.next_completed(min(left_s, _LOOK_EVERY_S))
            if completed is not None and not isinstance(completed, float) and completed.ended is not None:
                self._recorder.record(completed.ended)
        self._recorder.flush_after_error()

    # -- images that hang ------------------------------------------------------------------------------------------

    def _give_up_hanging(self, stream: Stream[ImageTask]) -> None:
        """Fail images that are in a stage for longer than they may.

        Raises:
            WorkerError: Every thread hangs, and others wait for one.
        """
        tasks = self._chunk.in_flight()
        for task in tasks:
            stage = task.overdue(self._item_timeout_s)
            if stage is not None and self._pipeline.give_up(task, stream):
                self._slots.hangs()
                self._recorder.record(failed(self._in_place_of(task, stage)))
        if self._slots.hanging() >= self._io_threads and any(task.stage is None for task in tasks):
            raise WorkerError("every thread hangs at an image; this process starts anew")

    def _in_place_of(self, task: ImageTask, stage: str) -> ImageTask:
        log.warning("action=hanging An image hangs in %s: %s", stage, redact(task.item.uri))
        error = ItemTimeout(f"{stage} takes longer than {self._item_timeout_s:g} s")
        return ImageTask(self._chunk, task.offset, task.item, seconds=dict(task.seconds), error=error)


def blame(weight: int) -> ItemError | None:
    """What the deaths that an image was alone in say of it.

    Args:
        weight: Their weights together, as `worker/recover/watchdog.py` has them.
    """
    if weight >= HUNG:
        return ItemTimeout("the process that worked at it hung and had to be killed")
    if weight >= CONVICTING:
        return CrashedWorker(
            "the processes that worked at it alone died: it crashes a decoder, or needs too much memory"
        )
    return None
