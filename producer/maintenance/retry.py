"""Finished images become pending again: failed ones, or done ones whose pictures are gone."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from producer.jobs.model.errors import UnreadableJob
from producer.jobs.model.items import Item
from producer.jobs.table.user_actions import NOBODY, By

if TYPE_CHECKING:
    from producer.jobs.broker.messages import Publish
    from producer.jobs.table.table import JobTable
    from producer.jobs.table.user_actions import Generation


def retry_failed(
    table: JobTable, publish: Publish, job: str, queue: str, *, only: str | None = None, by: By = NOBODY
) -> int:
    """Try the failed images of a job that has ended once more, and nothing else.

    A job that failed as a whole also continues with the images that nobody had begun.

    Args:
        table: The job table.
        publish: Sends a chunk's pointer.
        job: Its id.
        queue: Its priority.
        only: Only images that failed for it.
        by: Who does it, and why.

    Returns:
        How many failed images are tried again.

    Raises:
        UnknownJob: There is no such job, or its lifetime is over.
        UsageError: It has not ended, was cancelled, or has no such failures.
        UnreadableJob: Of some images it cannot be read why they failed; the others are tried again.
    """
    generation = table.actions.retry(job, queue, retry_id=uuid.uuid4().hex, only=only, by=by)
    lost: list[UnreadableJob] = []

    def wanted() -> Iterator[RetryItem]:
        try:
            for failure in table.queries.failures(job):
                if only in {None, failure.reason}:
                    yield RetryItem(failure.index, failure.item)
        except UnreadableJob as error:
            lost.append(error)  # those that can be read are tried again, then it is told

    count = reopen(table, publish, job, generation, wanted())
    if lost:
        raise lost[0]
    return count


@dataclass(frozen=True)
class RetryItem:
    """An image that becomes pending again."""

    index: int
    item: Item
    #: The class a done one was explained for, as `class_key` makes it.
    class_key: str = ""


def reopen(table: JobTable, publish: Publish, job: str, generation: Generation, images: Iterable[RetryItem]) -> int:
    """Make images pending again, given in ascending order of their index, and let the job end again.

    Returns:
        How many.
    """
    count, size = 0, table.queries.existing_outline(job).chunk_size
    for chunk, group in groupby(images, lambda image: image.index // size):
        again = {image.index % size: image for image in group}
        # With what the chunk still holds: the job may have failed as a whole before anybody began that.
        items = table.queries.items_of(job, chunk) | {offset: image.item for offset, image in again.items()}
        classes = {offset: image.class_key for offset, image in again.items()}
        published_at = table.actions.reopen(job, generation, chunk, items, classes)
        if published_at is not None:
            publish(chunk, published_at)
            count += len(again)
    table.actions.reopened(job, generation)
    return count
