"""The ends of a chunk's items go into manifest and job table: objects first, then manifest, then commit."""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from producer.jobs.model import keys
from producer.jobs.model.errors import GradcamError, StoreError, WorkerError
from producer.jobs.model.results import class_key
from producer.jobs.model.stage_times import WAIT
from producer.jobs.tracing.traces import NO_SPAN, Span
from worker import metrics
from worker.chunks.lease import LeaseLost

if TYPE_CHECKING:
    from producer.jobs.store.bucket import Storage
    from producer.jobs.table.claims import Claim
    from producer.jobs.table.table import JobTable
    from worker.chunks.chunk import Ended
    from worker.chunks.lease import Lease
    from worker.chunks.shard import Shard

log = logging.getLogger(__name__)

#: How long recording may take, with all retries while Redis or the store is away; also of a shard of gigabytes.
_RECORD_S = 1800.0


class ResultRecorder:
    """Records the ends of one chunk's items; used by the chunk's own thread.

    Args:
        table: The job table.
        storage: Our bucket.
        claim: The chunk.
        lease: Its lease.
        lease_s: How long a commit extends it.
        commit_every_s: How often what has ended is recorded.
        shard: Where pictures are packed: then all of the chunk is committed at once, or nothing.
        span: Is told when this was at work, and what it committed.
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
        shard: Shard | None = None,
        span: Span = NO_SPAN,
    ) -> None:
        self._table, self._storage, self._claim, self._lease, self._lease_s = table, storage, claim, lease, lease_s
        self._commit_every_s, self._shard, self._span = commit_every_s, shard, span
        self._ended: list[Ended] = []
        #: stage → seconds of what is not one image's, since the last commit
        self._seconds: Counter[str] = Counter()
        self._part = 0
        self._committed = time.monotonic()
        #: Whether all of the chunk is committed.
        self.complete = False

    def record(self, ended: Ended) -> None:
        """Take note of an item's end; it counts with the next commit.

        Raises:
            WorkerError: No shard can be written.
        """
        if self._shard is not None and ended.files:
            self._shard.add(ended.result, ended.files)
            ended = replace(ended, files={})  # memory stays flat
        self._ended.append(ended)

    def add_time(self, what: str, seconds: float) -> None:
        """Take note of time that no single image took."""
        self._seconds.update({what: seconds})

    def commit_when_due(self) -> None:
        """Commit what has ended, if the last commit was long ago; a shard is committed whole."""
        if self._shard is None and time.monotonic() - self._committed >= self._commit_every_s:
            self.commit()

    def flush_after_error(self) -> None:
        """Something broke off: record what has ended all the same. Half a shard is none."""
        if self._shard is None:
            with suppress(GradcamError):
                self.commit()

    def commit(self) -> None:
        """Record what has ended: the manifest first, then the bits.

        Raises:
            LeaseLost: The job takes no more of this chunk.
            WorkerError: The manifest or the shard cannot be written.
            ServiceError: Redis is away.
        """
        self._committed = time.monotonic()
        ended, self._ended = self._ended, []
        claim = self._claim
        if not ended or (self._shard is not None and len(ended) < len(claim.pending)):
            return
        # Redis and the store have patience and retries of their own: recording is nothing that hangs.
        with suppress(LeaseLost):
            self._lease.step(_RECORD_S)
        if self._shard is not None:
            with suppress(GradcamError):  # nothing is being decoded or computed any more
                self._lease.mark([])
            with self._span.timed("upload"):
                self._shard.upload()
        with self._span.timed("record"):
            self._write_manifest(ended)
        done = {end.offset: class_key(end.result) for end in ended if end.failure is None}
        failed = [end.failure for end in ended if end.failure is not None]
        seconds, self._seconds = self._seconds, Counter()
        for end in ended:
            seconds.update(end.result.seconds)
            seconds.update({f"{stage}{WAIT}": waited for stage, waited in end.waits.items()})
        with self._span.timed("commit"):
            # Before what may be the job's last commit: nothing is noted of a job that has ended.
            if problem := next(filter(None, (end.label_problem for end in ended)), None):
                self._table.annotate(claim.job, claim.life, label_problem=problem)
            committed = self._table.commit(claim, done=done, failed=failed, lease_s=self._lease_s, seconds=seconds)
        if committed is None:
            raise LeaseLost
        self.complete = committed.complete
        self._span.add(done=committed.done, failed=committed.failed)
        metrics.committed(
            seconds,
            network=claim.spec.network,
            done=committed.done,
            # Of a repeated commit fewer count.
            failed=Counter(failure.reason for failure in failed[: committed.failed]),
            images=(end.result.seconds for end in ended),
        )
        log.info(
            "action=committed job=%s chunk=%d %d images done, %d failed.",
            claim.job,
            claim.chunk,
            committed.done,
            committed.failed,
        )

    def _write_manifest(self, ended: list[Ended]) -> None:
        claim = self._claim
        key = keys.manifest(self._storage.prefix, claim.job, claim.chunk, claim.token, self._part, claim.epoch)
        self._part += 1
        started = time.monotonic()
        try:
            self._storage.put(key, "\n".join(end.result.line for end in ended).encode())
        except StoreError as error:
            # No image's fault: without its manifest nothing of this part counts, another worker may do better.
            raise WorkerError(str(error)) from None
        self.add_time("record", time.monotonic() - started)
