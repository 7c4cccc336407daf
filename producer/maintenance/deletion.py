"""Everything that a job has in the store is deleted, while no other client touches the job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

from producer.jobs.model import keys
from producer.jobs.model.errors import UnknownJob
from producer.jobs.model.states import JobState
from producer.jobs.store.bucket import DELETED_AT_ONCE
from producer.maintenance.maintenance_lease import MaintenanceLease

if TYPE_CHECKING:
    from producer.jobs.store.bucket import Storage
    from producer.jobs.table.table import JobTable


def delete_with_objects(
    table: JobTable, storage: Storage, job: str, progress: Callable[[int], None] | None = None
) -> int:
    """Delete a job's objects, then forget the job; what was broken off can be repeated.

    Its summary goes last: while that is there, a job that Redis has forgotten can still be named. A job of an early
    release may be called `weights`: weights that all jobs share lie among its objects, and stay.

    Args:
        table: The job table.
        storage: Our bucket.
        job: Its id.
        progress: Called with objects deleted so far.

    Returns:
        How many objects were deleted.

    Raises:
        UsageError: It has not ended, or another client holds it.
        StoreError, JobError, WorkerError: The store cannot be used.
    """
    with MaintenanceLease(table, job, JobState.DELETING) as lease:
        count = 0
        for part in _parts(storage, job):
            lease.check()
            lease.incomplete = True
            storage.delete(part)
            count += len(part)
            if progress:
                progress(count)
        with suppress(UnknownJob):
            table.actions.delete(job, who=lease.who)
    return count


def _parts(storage: Storage, job: str) -> Iterator[list[str]]:
    """The keys of a job's objects, as many as are deleted at once; the summary comes last, by itself."""
    last = keys.summary(storage.prefix, job)
    summaries: list[str] = []

    def others() -> Iterator[str]:
        for key in storage.keys(keys.job_prefix(storage.prefix, job)):
            if key == last:
                summaries.append(key)
            elif not keys.is_shared(storage.prefix, key):
                yield key

    names = others()
    while part := list(islice(names, DELETED_AT_ONCE)):
        yield part
    if summaries:
        yield summaries
