"""What every verb of the client needs: the job table, the store, and a way to send messages."""

from __future__ import annotations

import uuid
from contextlib import suppress
from functools import cached_property, partial
from typing import Any, Self

from producer.jobs.model.errors import UnknownJob, UsageError, WorkerError, no_such
from producer.jobs.model.settings import Connections, read
from producer.jobs.model.spec import JobSpec
from producer.jobs.model.states import JobState
from producer.jobs.store.bucket import Storage
from producer.jobs.store.finalize import finalize
from producer.jobs.table.queries import Outline
from producer.jobs.table.redis_scripts import connect
from producer.jobs.table.table import JobTable
from producer.submission.submit import Publish


class Connected:
    """Settings, and what they lead to, connected when it is first needed. Safe to share between threads."""

    def __init__(self, settings: Connections) -> None:
        self._settings = settings

    @classmethod
    def from_env(cls) -> Self:
        """Make a client from `GRADCAM_*` and `AWS_*` environment variables.

        Raises:
            SettingsError: Names every missing, wrong and misspelt setting at once.
        """
        return cls(read(Connections))

    @cached_property
    def table(self) -> JobTable:
        """The job table."""
        return JobTable(connect(self._settings))

    @cached_property
    def storage(self) -> Storage:
        """Our bucket."""
        return Storage.from_settings(self._settings)

    def _ready(self) -> None:
        """Before anything is sent: Redis lets us do all that it takes, and keeps what it is given.

        Raises:
            Unfit: It does not; says what to do.
        """
        self.table.server.check(reads_queues=False, allow_eviction=self._settings.allow_eviction)

    def _same_store(self, job: str) -> None:
        store = self._outline(job).spec.get("store", "")
        if store not in {"", self.storage.place}:
            raise UsageError(
                f"the pictures of job {job} are in {store}, not in {self.storage.place}: "
                "correct GRADCAM_S3_BUCKET and GRADCAM_S3_PREFIX"
            )

    def _outline(self, job: str) -> Outline:
        found = self.table.queries.outline(job)
        if found is None:
            raise UnknownJob(no_such(job))
        return found

    def _spec(self, job: str) -> JobSpec:
        found = self.table.queries.spec(job)
        if found is None:
            raise UnknownJob(no_such(job))
        return found[0]

    def _send_missing(self, queue: str) -> None:
        """Send messages for chunks that wait without one now; what is on its way makes a few too many, harmlessly."""
        while missing := self.table.recovery.missing_messages(queue, grace_s=0):
            for job, chunk in missing:
                if not self._send_message(queue, job, chunk, self.table.registry.now()):
                    return

    def _publisher(self, job: str, queue: str) -> Publish:
        return partial(self._send_message, queue, job)

    def _send_message(self, name: str, job: str, chunk: int, published_at: float) -> bool:
        """Send a pointer; False when it cannot be sent: then the reconciler does it, for the job table knows."""
        from producer.jobs.broker import celery_app

        try:
            celery_app.publish(self._app, job, chunk, queue=name, published_at=published_at)
        except celery_app.BrokerAway:
            return False
        return True

    @cached_property
    def _app(self) -> Any:
        # Celery takes 0.2 s to import, and most verbs do without.
        from producer.jobs.broker import celery_app

        return celery_app.make_app(self._settings.redis_url.get_secret_value())

    def _finalize(self, job: str) -> None:
        """Enter the end where nothing but the end is left; a worker's reconciler would do it a little later."""
        found = self.table.queries.outline(job)
        if found is None or found.state != JobState.FINALIZING:
            return  # most verbs need no store
        with suppress(WorkerError):
            finalize(self.table, self.storage, job, f"client-{uuid.uuid4().hex}")
