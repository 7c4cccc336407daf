"""The ends of a chunk's items on their way into manifest and job table: objects first, then manifest, then commit."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING

from producer.jobs.model import keys
from producer.jobs.model.errors import GradcamError, StoreError, WorkerError
from producer.jobs.model.results import Failure, Result, class_key
from producer.jobs.model.stage_times import WAIT
from worker import metrics
from worker.chunks.lease import LeaseLost

if TYPE_CHECKING:
    from producer.jobs.store.bucket import Storage
    from producer.jobs.table.claims import Claim
    from producer.jobs.table.table import JobTable
    from worker.chunks.item import Image
    from worker.chunks.lease import Lease
    from worker.chunks.shard import Shard

log = logging.getLogger(__name__)

#: How long uploads that are under way may take to end when something broke off.
_SETTLE_S = 60.0
#: How long recording may take, with all retries while Redis or the store is away; also of a shard of gigabytes.
_RECORD_S = 1800.0


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


class Ledger:
    """Ends of one chunk's items on their way into manifest and job table, and which items are under way.

    Args:
        table: The job table.
        storage: Our bucket.
        claim: The chunk in hand.
        lease: Its lease.
        lease_s: How long a commit extends it.
        commit_every_s: How often what has ended is recorded.
        wait: Gives the end of an image that is being finished, waiting for it.
        shard: Where pictures are packed: then all of the chunk is committed at once, or nothing.
    """

    def __init__(
        self,
        table: JobTable,
        storage: Storage,
        claim: Claim,
        lease: Lease,
        *,
        lease_s: float,
        commit_every_s: float,
        wait: Callable[[Image, Future[Ended]], Ended],
        shard: Shard | None = None,
    ) -> None:
        self._table, self._storage, self._claim, self._lease, self._lease_s = table, storage, claim, lease, lease_s
        self._commit_every_s, self._wait, self._shard = commit_every_s, wait, shard
        self._underway: deque[tuple[Image, Future[Ended]]] = deque()
        self._marked: set[int] = set()
        self._ended: list[Ended] = []
        #: stage → seconds of what is not one image's, since the last commit
        self._seconds: Counter[str] = Counter()
        self._part = 0
        self._committed = time.monotonic()
        self.complete = False

    def marked(self, images: Iterable[Image], *, at_once: int) -> Iterator[Image]:
        """Pass images on, each of them marked before: those that are under way when a process dies are suspect."""
        stream = iter(images)
        while group := list(islice(stream, at_once)):
            self._marked |= {image.offset for image in group}
            self._lease.mark(sorted(self._marked))
            yield from group

    def add(self, image: Image, future: Future[Ended]) -> None:
        """Take note of an item that is being finished."""
        self._underway.append((image, future))

    def end(self, ended: Iterable[Ended]) -> None:
        """Take note of items that have their end."""
        self._ended += ended

    def leave(self, ended: Ended) -> None:
        """Take note of an item that has come to its end before the device."""
        self._ended.append(ended)
        self._marked.discard(ended.offset)

    def note(self, what: str, seconds: float) -> None:
        """Take note of time that no single image took."""
        self._seconds.update({what: seconds})

    def harvest(self, *, leave: int) -> None:
        """Take in what has ended, waiting until at most `leave` are under way; record it from time to time."""
        while self._underway and (len(self._underway) > leave or self._underway[0][1].done()):
            image, future = self._underway.popleft()
            self._ended.append(self._packed(self._wait(image, future)))
            self._marked.discard(image.offset)
        if self._shard is None and time.monotonic() - self._committed >= self._commit_every_s:
            self.commit()

    def _packed(self, ended: Ended) -> Ended:
        if self._shard is None or not ended.files:
            return ended
        self._shard.add(ended.result, ended.files)
        return replace(ended, files={})  # memory stays flat

    def _recording(self) -> None:
        """Redis and the store have patience and retries of their own: recording is nothing that hangs."""
        with suppress(LeaseLost):
            self._lease.step(_RECORD_S)

    def settle(self) -> None:
        """Something broke off: record what has ended all the same, and leave nothing running behind."""
        self._recording()
        running = [future for _, future in self._underway if not future.cancel()]
        self._ended += [
            future.result() for future in wait(running, timeout=_SETTLE_S).done if future.exception() is None
        ]
        self._underway.clear()
        if self._shard is not None:
            return  # half a shard is none
        with suppress(GradcamError):
            self.commit()

    def commit(self) -> None:
        """Record what has ended: the manifest first, then the bits."""
        self._committed = time.monotonic()
        ended, self._ended = self._ended, []
        claim = self._claim
        if not ended or (self._shard is not None and len(ended) < len(claim.pending)):
            return
        self._recording()
        if self._shard is not None:
            with suppress(GradcamError):  # nothing is being decoded or computed any more
                self._lease.mark([])
            self._shard.upload()
        key = keys.manifest(self._storage.prefix, claim.job, claim.chunk, claim.token, self._part, claim.epoch)
        self._part += 1
        lines = (end.result.line for end in ended)
        started = time.monotonic()
        try:
            self._storage.put(key, "\n".join(lines).encode())
        except StoreError as error:
            # No image's fault: without its manifest nothing of this part counts, another worker may do better.
            raise WorkerError(str(error)) from None
        done = {end.offset: class_key(end.result) for end in ended if end.failure is None}
        failed = [end.failure for end in ended if end.failure is not None]
        self.note("record", time.monotonic() - started)
        seconds, self._seconds = self._seconds, Counter()
        for end in ended:
            seconds.update(end.result.seconds)
            seconds.update({f"{stage}{WAIT}": waited for stage, waited in end.waits.items()})
        committed = self._table.commit(claim, done=done, failed=failed, lease_s=self._lease_s, seconds=seconds)
        if committed is None:
            raise LeaseLost
        self.complete = committed.complete
        metrics.committed(seconds, done=committed.done, failed=committed.failed)
        log.info(
            "action=committed job=%s chunk=%d %d images done, %d failed.",
            self._claim.job,
            self._claim.chunk,
            committed.done,
            committed.failed,
        )
