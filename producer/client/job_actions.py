"""What a user does with a job that is there; the job table, the store and the queues follow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from producer.jobs.model import keys
from producer.jobs.model.errors import UnknownJob, UsageError
from producer.jobs.model.history import checked_reason, user_and_host
from producer.jobs.model.states import TERMINAL, JobState
from producer.jobs.model.status import JobStatus
from producer.jobs.model.suggestions import meant
from producer.jobs.model.text import quoted
from producer.jobs.table.user_actions import By
from producer.maintenance.audit import Finding, audit
from producer.maintenance.audit import repair as repair_job
from producer.maintenance.deletion import delete_with_objects
from producer.maintenance.retry import retry_failed
from producer.output.checks import failure_reasons
from producer.submission.recover import Recovered, recover

if TYPE_CHECKING:
    from producer.client.monitor import Monitor
    from producer.client.services import Services


#: How long a worker may take to write a job's summary before its state is told as it is.
_SUMMARY_S: Final = 5.0


class JobActions:
    """Acts on jobs; each method is described at the method of `Client` that has its name."""

    def __init__(self, services: Services, monitor: Monitor) -> None:
        self._services, self._monitor = services, monitor

    def _by(self, reason: str | None) -> By:
        return By(self._services.settings.user or user_and_host(), checked_reason(reason))

    def cancel(self, job: str, reason: str | None) -> JobStatus:
        """See `Client.cancel`."""
        state = self._services.table.actions.cancel(job, self._by(reason))
        if state in TERMINAL and state is not JobState.CANCELLED:
            raise UsageError(f"job {job} has ended already: {state}")
        self._services.finalize_if_due(job)
        # A worker may be writing its summary at this moment, in place of this client.
        until = time.monotonic() + _SUMMARY_S
        while (status := self._monitor.status(job)).state is JobState.FINALIZING and time.monotonic() < until:
            time.sleep(0.05)
        return status

    def pause(self, job: str, reason: str | None) -> JobStatus:
        """See `Client.pause`."""
        return self._not_ended(job, self._services.table.actions.pause(job, self._by(reason)))

    def resume(self, job: str, reason: str | None) -> JobStatus:
        """See `Client.resume`."""
        status = self._not_ended(job, self._services.table.actions.resume(job, self._by(reason)))
        self._services.messages.send_missing(
            self._services.table, self._services.table.queries.existing_outline(job).queue
        )
        return status

    def retry(self, job: str, only: str | None, reason: str | None) -> int:
        """See `Client.retry`."""
        by = self._by(reason)
        if only is None and by.reason and (kind := meant(by.reason, failure_reasons())):
            # Up to 0.4.0 it chose images: whoever still types that must not try all of them again.
            raise UsageError(
                f"{quoted(kind)} is what images fail for: to try only what failed with it again say --only "
                f"{kind}, in Python only={quoted(kind)}; --reason is why you try, in words of your own"
            )
        queue = self._services.table.queries.existing_outline(job).queue
        self._services.check_redis()
        self._services.finalize_if_due(job)  # where a worker cannot write its summary, it need not wait for another
        messages = self._services.messages
        count = retry_failed(self._services.table, messages.publisher(job, queue), job, queue, only=only, by=by)
        messages.send_missing(self._services.table, queue)
        return count

    def recover(self, job: str, waiting: Callable[[str], None] | None) -> Recovered:
        """See `Client.recover`."""
        services = self._services
        services.check_redis()
        found = recover(services.table, services.storage, services.submission, job, by=self._by(None), waiting=waiting)
        if found.state is JobState.PAUSED:
            # A submission had begun it, and a worker has some of it in flight.
            found = found.model_copy(update={"state": self.resume(job, None).state})
        return found

    def delete(self, job: str, *, objects: bool, progress: Callable[[int], None] | None) -> int:
        """See `Client.delete`."""
        self._services.finalize_if_due(job)  # where a worker cannot write its summary, it need not wait for another
        if not objects:
            self._services.table.actions.delete(job)
            return 0
        try:
            self._services.check_store(job)
        except UnknownJob:
            # Redis forgets a job after its lifetime, the store does not.
            # What stands in its summary does not matter: it may be torn.
            if self._services.storage.size(keys.summary(self._services.storage.prefix, job)) is None:
                raise
        return delete_with_objects(self._services.table, self._services.storage, job, progress)

    def audit(self, job: str, *, repair: bool) -> Iterator[Finding]:
        """See `Client.audit`."""
        self._services.check_store(job)
        if repair:
            publish = self._services.messages.publisher(job, self._services.table.queries.existing_spec(job).queue)
            by = self._by(None)
            return repair_job(self._services.table, self._services.storage, publish, job, by=by)
        return audit(self._services.table, self._services.storage, job)

    def _not_ended(self, job: str, state: JobState) -> JobStatus:
        if state in TERMINAL:
            raise UsageError(f"job {job} has ended already: {state}")
        return self._monitor.status(job)
