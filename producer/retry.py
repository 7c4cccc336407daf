"""Images that have their end become pending again: those that failed, or done ones whose pictures are gone."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING

from producer.jobs.errors import UnknownJob

if TYPE_CHECKING:
    from producer.jobs.spec import Item
    from producer.jobs.table import JobTable
    from producer.submit import Publish


def retry_failed(table: JobTable, publish: Publish, job: str, *, reason: str | None = None) -> int:
    """Try the failed images of a job that has ended once more, and nothing else.

    A job that failed as a whole goes on with the images that never had their turn as well.

    Args:
        table: The job table.
        publish: Sends a chunk's pointer.
        job: Its id.
        reason: Only images that failed for it.

    Returns:
        How many failed images are tried again.

    Raises:
        UnknownJob: There is no such job, or its lifetime is over.
        UsageError: It has not ended, was cancelled, or has no such failures.
    """
    generation = table.control.retry(job, retry_id=uuid.uuid4().hex, reason=reason)
    failures = table.control.failures(job)
    wanted = ((f.index, f.item) for f in failures if reason in {None, f.reason})
    return reopen(table, publish, job, generation, wanted)


def reopen(table: JobTable, publish: Publish, job: str, generation: int, items: Iterable[tuple[int, Item]]) -> int:
    """Make images pending again, given in ascending order of their index, and let the job end again.

    Returns:
        How many.
    """
    found = table.spec(job)
    if found is None:
        raise UnknownJob(f"job {job} is gone")
    count = 0
    for chunk, offsets in _by_chunk(items, found[0].chunk_size):
        # What the chunk still holds: the job may have failed as a whole before that had its turn.
        here = table.control.items_of(job, chunk) | offsets
        published_at = table.control.reopen(job, generation, chunk, here, list(offsets))
        if published_at is not None:
            publish(chunk, published_at)
            count += len(offsets)
    table.control.reopened(job, generation)
    return count


def _by_chunk(items: Iterable[tuple[int, Item]], chunk_size: int) -> Iterator[tuple[int, dict[int, Item]]]:
    def chunk_of(numbered: tuple[int, Item]) -> int:
        return numbered[0] // chunk_size

    for chunk, group in groupby(items, chunk_of):
        yield chunk, {index % chunk_size: item for index, item in group}
