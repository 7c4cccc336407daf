"""Messages from the producer's side: pointers to chunks, sent one by one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from producer.jobs.table.table import JobTable

#: Called with a chunk's number and the time to publish its pointer with.
Publish = Callable[[int, float], object]


class Messages:
    """Sends pointers; Celery is imported when the first is sent. Safe to share between threads.

    Args:
        redis_url: Where the queues lie; may hold the password.
    """

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url

    @cached_property
    def _app(self) -> Any:
        # Celery takes 0.2 s to import, and most verbs do without.
        from producer.jobs.broker import celery_app

        return celery_app.make_app(self._redis_url)

    def send(self, queue: str, job: str, chunk: int, published_at: float) -> bool:
        """Send a pointer; False when it cannot be sent: then the reconciler does it, for the job table knows."""
        from producer.jobs.broker import celery_app

        try:
            celery_app.publish(self._app, job, chunk, queue=queue, published_at=published_at)
        except celery_app.BrokerAway:
            return False
        return True

    def publisher(self, job: str, queue: str) -> Publish:
        """What sends pointers to the chunks of one job."""
        return partial(self.send, queue, job)

    def send_missing(self, table: JobTable, queue: str) -> None:
        """Send messages for chunks that wait without one now; what is on its way makes a few too many, harmlessly."""
        while missing := table.recovery.missing_messages(queue, grace_s=0):
            for job, chunk in missing:
                if not self.send(queue, job, chunk, table.registry.now()):
                    return
