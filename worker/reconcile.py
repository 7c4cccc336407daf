"""What died processes left is handed out again; one worker's main process does it at a time, for all."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from producer.jobs.errors import GradcamError
from producer.jobs.queue import oldest_published_at
from producer.jobs.table import JobTable
from worker.finalise import finalise

if TYPE_CHECKING:
    import redis

    from producer.jobs.storage import Storage

log = logging.getLogger(__name__)

#: Called with job, chunk and the time published; sends a pointer to the queue `recovery`.
Republish = Callable[[str, int, float], None]


def reconcile(
    table: JobTable, client: redis.Redis, storage: Storage, republish: Republish, *, who: str, grace_s: float
) -> int:
    """Hand out again what nobody works at and no message points to.

    A pointer is lost when its chunk waits since before the oldest message still in each queue that could hold it was
    published. The time between publishing in the table and in the queue, and between reading and claiming, is what
    `grace_s` allows for.

    Returns:
        How many chunks were published again.
    """
    now = table.now()
    recovery = oldest_published_at(client, "recovery")
    republished = 0
    for job in table.active():
        found = table.spec(job)
        if found is None:
            table.forget_active(job)
            continue
        spec, state = found
        if state == "finalizing":
            finalise(table, storage, job, who)
            continue
        heads = [now, recovery, oldest_published_at(client, spec.queue)]
        _, repaired = table.reconcile(job, lost_before=min(head for head in heads if head is not None) - grace_s)
        for chunk in repaired.expired + repaired.lost:
            republish(job, chunk, repaired.published_at)
        if repaired.expired or repaired.lost:
            log.warning(
                "action=republished job=%s %d leases had run out and %d pointers were lost; published again.",
                job,
                len(repaired.expired),
                len(repaired.lost),
            )
        republished += len(repaired.expired) + len(repaired.lost)
    return republished


class Reconciler(threading.Thread):
    """Says that this worker is alive, and reconciles when no other worker did within the interval."""

    def __init__(
        self,
        table: JobTable,
        client: redis.Redis,
        storage: Storage,
        republish: Republish,
        *,
        who: str,
        interval_s: float,
        on_orphaned: Callable[[], None],
    ) -> None:
        super().__init__(name="reconciler", daemon=True)
        self._table, self._client, self._storage, self._republish = table, client, storage, republish
        self._who, self._interval_s, self._on_orphaned = who, interval_s, on_orphaned
        self._stopped = threading.Event()

    def run(self) -> None:
        """Go on until stopped; a Redis that is away is waited for."""
        while True:
            try:
                self._once()
            except Exception as error:
                expected = isinstance(error, GradcamError) or type(error).__module__.startswith(("redis", "kombu"))
                log.warning(
                    "action=reconcile_failed Lost work could not be looked for (%s), trying again.",
                    type(error).__name__,
                    exc_info=None if expected else error,
                )
            if self._stopped.wait(self._interval_s):
                return

    def stop(self) -> None:
        """Stop, and say that this worker is gone."""
        self._stopped.set()
        self.join(timeout=2)
        self._table.retire(self._who)

    def _once(self) -> None:
        self._on_orphaned()
        self._table.beat(self._who)
        # The lock is shorter than the interval, so that its holder's death delays nobody by more than one.
        if self._table.lead_reconciler(self._who, 0.9 * self._interval_s):
            reconcile(
                self._table,
                self._client,
                self._storage,
                self._republish,
                who=self._who,
                grace_s=self._interval_s,
            )
