"""The servers behind a client: the job table, the store and the queues, each connected when it is first needed."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import TYPE_CHECKING

from producer.jobs.broker.messages import Messages
from producer.jobs.model.errors import UsageError
from producer.jobs.store.bucket import Storage
from producer.jobs.store.finalize import finalize_if_due
from producer.jobs.table.redis_scripts import PATIENCE_S, connect
from producer.jobs.table.table import JobTable
from producer.jobs.tracing.traces import open_traces
from producer.submission.submit import Submission

if TYPE_CHECKING:
    from collections.abc import Callable

    from producer.jobs.model import settings

log = logging.getLogger(__name__)


class Services:
    """Settings, and what they lead to. Safe to share between threads."""

    def __init__(self, settings: settings.Connections) -> None:
        self.settings = settings
        self.messages = Messages(settings.redis_url.get_secret_value())

    @cached_property
    def table(self) -> JobTable:
        """The job table."""
        return JobTable(connect(self.settings))

    def wait_for_redis(self, tell: Callable[[str], None] | None) -> None:
        """Connect to a Redis that may be away at this moment; errors as `connect`.

        Args:
            tell: Called with a sentence where it is waited for.
        """
        if "table" not in vars(self):
            self.table = JobTable(connect(self.settings, patience_s=PATIENCE_S, tell=tell))

    @cached_property
    def storage(self) -> Storage:
        """Our bucket."""
        return Storage.from_settings(self.settings)

    @cached_property
    def submission(self) -> Submission:
        """What sends images."""
        lifetime_s = self.settings.job_lifetime_days * 86400
        traces = open_traces(self.settings.traces, "gradcam", log.warning)
        return Submission(self.table, self.storage, self.messages, lifetime_s=lifetime_s, traces=traces)

    def check_redis(self) -> None:
        """Before anything is sent: Redis lets us do all that it takes, and keeps what it is given.

        Raises:
            Unfit: It does not; says what to do.
        """
        self.table.server.check(reads_queues=False, allow_eviction=self.settings.allow_eviction)

    def check_store(self, job: str) -> None:
        """Make sure that a job's pictures lie in our store.

        Raises:
            UnknownJob: There is no such job.
            UsageError: They lie in another one.
        """
        store = self.table.queries.existing_outline(job).spec.get("store", "")
        if store not in {"", self.storage.place}:
            raise UsageError(
                f"the pictures of job {job} are in {store}, not in {self.storage.place}: "
                "correct GRADCAM_S3_BUCKET and GRADCAM_S3_PREFIX"
            )

    def finalize_if_due(self, job: str) -> None:
        """Enter the job's end where nothing but the end is left. Most verbs need no store: it is opened only here."""
        finalize_if_due(self.table, lambda: self.storage, job)
