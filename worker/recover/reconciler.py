"""What died processes left is handed out again; one worker's main process does it at a time, for all."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from producer.jobs.model.errors import GradcamError, ServiceError
from producer.jobs.model.spec import PRIORITIES
from producer.jobs.store.finalize import finalize

if TYPE_CHECKING:
    from producer.jobs.store.bucket import Storage
    from producer.jobs.table.table import JobTable

log = logging.getLogger(__name__)

#: Called with job, chunk and the time published; sends a pointer to the queue `recovery`.
Republish = Callable[[str, int, float], None]
#: Called with queue, job, chunk and the time published.
Publish = Callable[[str, str, int, float], None]
_AT_ONCE = 100
#: For so many intervals a worker that could not look after a job leaves that to others.
_OTHERS_LEAD = 3


@dataclass(frozen=True)
class Death:
    """A child process that died with a chunk in hand, as its parent saw it."""

    job: str
    chunk: int
    claim_id: str
    #: How much it speaks against an image that was alone under the mark.
    weight: int
    #: What the child had marked.
    marked: list[int]
    #: The job's, as `Claim` has it.
    life: str
    #: Whether it was loading the job's model.
    loading: bool = False


def reconcile(
    table: JobTable,
    storage: Storage,
    republish: Republish,
    *,
    who: str,
    grace_s: float,
    publish: Publish,
    unable: Callable[[str], None] = lambda _: None,
) -> int:
    """Hand out again what nobody works at, and send again the messages that were lost.

    Args:
        table: The job table.
        storage: Our bucket.
        republish: Sends the pointer of a chunk whose holder died to the queue `recovery`.
        who: The worker that does it.
        grace_s: How long messages have to be missing before they count as lost.
        publish: Sends a pointer to a priority.
        unable: Called with each job that could not be looked after.

    Returns:
        How many messages were sent.
    """
    table.recovery.forget_expired()
    table.registry.forget_silent()
    table.recovery.restore_active()
    sent = 0
    for job in table.recovery.active():
        try:
            sent += _expired(table, storage, republish, job, who)
        except ServiceError:
            raise
        except Exception as error:
            # One job's trouble (its bucket is away, it is damaged) is not that of those behind it.
            unable(job)
            unforeseen = None if isinstance(error, GradcamError) else error
            log.warning(
                "action=reconcile_failed job=%s It could not be looked after: %s", job, error, exc_info=unforeseen
            )
    for queue in PRIORITIES:
        while lost := table.recovery.missing_messages(queue, grace_s=grace_s, at_most=_AT_ONCE):
            for job, chunk in lost:
                publish(queue, job, chunk, table.registry.now())
            log.warning("action=republished queue=%s %d messages were lost; sent again.", queue, len(lost))
            sent += len(lost)
    return sent


def _expired(table: JobTable, storage: Storage, republish: Republish, job: str, who: str) -> int:
    found = table.queries.outline(job)
    if found is None:
        table.recovery.forget_active(job)
        return 0
    if found.state == "finalizing":
        finalize(table, storage, job, who)
        return 0
    sent = 0
    while True:
        repaired = table.recovery.reconcile(job, at_most=_AT_ONCE)
        for chunk in repaired.expired:
            republish(job, chunk, repaired.published_at)
        sent += len(repaired.expired)
        if len(repaired.expired) < _AT_ONCE:
            break
    if sent:
        log.warning("action=republished job=%s %d leases had run out; published again.", job, sent)
    return sent


class Reconciler(threading.Thread):
    """Says that this worker is alive, and reconciles when no other worker did within the interval."""

    def __init__(
        self,
        table: JobTable,
        storage: Storage,
        republish: Republish,
        *,
        publish: Publish,
        who: str,
        queues: Sequence[str],
        interval_s: float,
        grace_s: float,
        on_orphaned: Callable[[], None],
    ) -> None:
        super().__init__(name="reconciler", daemon=True)
        self._table, self._storage, self._republish, self._publish = table, storage, republish, publish
        self._who, self._interval_s, self._on_orphaned = who, interval_s, on_orphaned
        self._grace_s, self._queues = grace_s, queues
        self._leads_from = 0.0
        self._deaths: deque[Death] = deque()
        self._wake, self._stopped = threading.Event(), False

    def run(self) -> None:
        """Go on until stopped; a Redis that is away is waited for."""
        while not self._stopped:
            try:
                self._once()
            except Exception as error:
                expected = isinstance(error, GradcamError) or type(error).__module__.startswith(("redis", "kombu"))
                log.warning(
                    "action=reconcile_failed Lost work could not be looked for (%s), trying again.",
                    type(error).__name__,
                    exc_info=None if expected else error,
                )
            self._wake.wait(self._interval_s)
            self._wake.clear()

    def report(self, death: Death) -> None:
        """Have a dead child's chunk given back now, not when its lease runs out; called from another thread."""
        self._deaths.append(death)
        self._wake.set()

    def stop(self) -> None:
        """Stop, and say that this worker is gone."""
        self._stopped = True
        self._wake.set()
        self.join(timeout=2)
        self._table.registry.deregister(self._who)

    def _once(self) -> None:
        self._on_orphaned()
        while self._deaths:
            self._bury(self._deaths[0])
            self._deaths.popleft()
        self._table.registry.heartbeat(self._who, self._queues)
        if time.monotonic() < self._leads_from:
            return
        # The lock is shorter than the interval, so that its holder's death delays nobody by more than one.
        if self._table.registry.try_lead(self._who, 0.9 * self._interval_s):
            unable: list[str] = []
            reconcile(
                self._table,
                self._storage,
                self._republish,
                who=self._who,
                grace_s=self._grace_s,
                publish=self._publish,
                unable=unable.append,
            )
            if unable:
                # Others may be able to; by its clock this one could go on to be the first each time.
                self._table.registry.step_down(self._who)
                self._leads_from = time.monotonic() + _OTHERS_LEAD * self._interval_s

    def _bury(self, death: Death) -> None:
        published_at = self._table.reclaim_from_dead(
            death.job,
            death.chunk,
            claim_id=death.claim_id,
            weight=death.weight,
            marked=death.marked,
            life=death.life,
            loading=death.loading,
        )
        if published_at is not None:
            log.warning("action=buried job=%s chunk=%d Its process died; given to others.", death.job, death.chunk)
            self._republish(death.job, death.chunk, published_at)
        elif death.loading:
            finalize(self._table, self._storage, death.job, self._who)
