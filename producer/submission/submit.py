"""A submission: its job is made, its images are streamed into it, and every failure is reported."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from producer.jobs.model.errors import JobEnded, ServiceError, SourceChanged, UnknownJob, UsageError
from producer.jobs.model.spec import new_job_id
from producer.jobs.model.states import Ingest, JobState
from producer.jobs.store.finalize import begin, finalize_if_due, recorded_spec
from producer.jobs.table.user_actions import BROKEN_OFF, refusal
from producer.jobs.tracing.traces import NO_SPAN
from producer.submission.sender import send
from producer.submission.spec_builder import fitting_size
from producer.submission.weights import place_weights

if TYPE_CHECKING:
    from producer.input.source import Source
    from producer.input.sources import Sources
    from producer.jobs.broker.messages import Messages
    from producer.jobs.model.spec import JobSpec
    from producer.jobs.store.bucket import Storage
    from producer.jobs.table.claims import CreatedJob
    from producer.jobs.table.table import JobTable
    from producer.jobs.tracing.traces import Span, Traces
    from producer.submission.sender import Progress, Records
    from producer.submission.spec_builder import Request

#: How often a submission begins anew because Redis was wiped under it.
_LIVES = 3


class Submission:
    """Sends images. Safe to share between threads.

    Args:
        table: The job table.
        storage: Our bucket.
        messages: Sends pointers to chunks.
        lifetime_s: How long a job stays in Redis after its end.
        traces: Where the span of each submission goes.
    """

    def __init__(
        self, table: JobTable, storage: Storage, messages: Messages, *, lifetime_s: float, traces: Traces
    ) -> None:
        self._table, self._storage, self._messages, self._lifetime_s = table, storage, messages, lifetime_s
        self._traces = traces

    def submit(
        self,
        request: Request,
        sources: Sources,
        *,
        progress: Progress | None = None,
        waiting: Callable[[str], None] | None = None,
    ) -> str:
        """Send all images of a job; its id. Errors are those of `Client.submit`."""
        name = request.options.name
        job = new_job_id() if name is None else name
        try:
            with self._traces.span("submit", job=job, network=request.draft.network) as span:
                size = self.chunk_size(request)
                self._storage.check()
                path = request.options.weight_path
                weights, digest = place_weights(
                    None if path is None else os.fspath(path), self._storage, request.draft.network
                )
                spec = request.spec(chunk_size=size, weights=weights, weights_sha256=digest, store=self._storage.place)
                self.send(job, name, spec, sources, sources.count, progress=progress, waiting=waiting, span=span)
        finally:
            self._traces.flush()
        return job

    def chunk_size(self, request: Request) -> int:
        """Images a chunk: as typed, as the job of that name began with, or as many as fit the network's speed."""
        if request.options.chunk_size is not None:
            return request.options.chunk_size
        # A job that is continued keeps the size it began with: what is in which chunk must not change.
        name = request.options.name
        before = None if name is None else self._spec_before(name)
        return before.chunk_size if before else fitting_size(self._table.registry.speed(request.draft.network))

    def _spec_before(self, name: str) -> JobSpec | None:
        """What a job of that name computes, if there is or was one."""
        found = self._table.queries.spec(name)
        return found[0] if found else recorded_spec(self._storage, name)

    def send(
        self,
        job: str,
        name: str | None,
        spec: JobSpec,
        sources: Iterable[Source],
        count: int | None,
        *,
        progress: Progress | None = None,
        waiting: Callable[[str], None] | None = None,
        span: Span = NO_SPAN,
        begun: Callable[[str], None] | None = None,
        records: Records | None = None,
    ) -> None:
        """Make a job, or go on with it, and send its images; takes what `sender.send` takes. Errors as `submit`.

        `begun` is called with the life of the job before anything is sent.
        """
        for _ in range(_LIVES):
            created = self._table.create(
                job, spec, name=name, lifetime_s=self._lifetime_s, traceparent=span.traceparent
            )
            since = created.since if name is None else self._begin(job, spec, created)
            if not created.new:
                self._continue(job, spec.queue)
            try:
                if begun:
                    begun(created.life)
                chunks, images = send(
                    self._table,
                    self._storage,
                    self._messages.publisher(job, spec.queue),
                    job=job,
                    life=created.life,
                    since=since,
                    spec=spec,
                    sources=sources,
                    count=count,
                    progress=progress,
                    waiting=waiting,
                    records=records,
                )
            except UnknownJob:
                continue  # Redis was wiped meanwhile.
            except JobEnded as error:
                raise self._why_ended(job, error) from None
            except SourceChanged:
                self._finalize(job)  # what it had before is kept, and has its end
                raise
            except BaseException:
                # Whatever broke it off: a named job can be continued, nobody could ever finish this one.
                if name is None:
                    self._table.fail(job, BROKEN_OFF, life=created.life)
                    self._finalize(job)
                raise
            span.note(chunks=chunks, images=images)
            # Where an earlier life of the job had done everything, no worker will come along to end it.
            self._finalize(job)
            return
        raise ServiceError(f"Redis lost job {job} again and again: check its persistence (appendonly yes)")

    def _begin(self, job: str, spec: JobSpec, created: CreatedJob) -> int:
        """Write down what the job computes, or find what was written before Redis was wiped; nothing is sent yet."""
        try:
            since = begin(self._storage, job, spec, since=created.since)
        except BaseException:
            if created.new:
                self._table.discard(job, spec, created.life)
            raise
        if since != created.since:
            self._table.adopt(job, created.life, since)
        return since

    def _continue(self, job: str, queue: str) -> None:
        """Go on with a job that is there: also with one that failed while it was being sent."""
        self._finalize(job)
        status = self._table.queries.status(job)
        if status.state is JobState.CANCELLED:
            raise UsageError(refusal(job, status.state))
        if status.state is not JobState.FAILED:
            return
        if status.ingest is Ingest.OPEN:
            self._table.actions.retry(job, queue, retry_id=uuid.uuid4().hex, mode="submit")
            return
        raise UsageError(f"job {job} failed as a whole ({status.error}): `gradcam retry {job}` goes on with it")

    def _why_ended(self, job: str, error: JobEnded) -> UsageError:
        self._finalize(job)
        status = self._table.queries.status(job)
        if status.error is None:
            return error
        return UsageError(
            f"job {job} failed while it was being sent ({status.error}): mend that, then the same command goes on"
        )

    def _finalize(self, job: str) -> None:
        finalize_if_due(self._table, lambda: self._storage, job)
