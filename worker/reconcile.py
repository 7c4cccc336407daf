"""What died processes left is handed out again; one worker's main process does it at a time, for all."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redis.exceptions import ResponseError

from producer.jobs.errors import GradcamError
from producer.jobs.finalise import finalise
from producer.jobs.keys import QUEUE_PREFIX
from producer.jobs.queue import oldest_published_at

if TYPE_CHECKING:
    import redis

    from producer.jobs.storage import Storage
    from producer.jobs.table import JobTable

log = logging.getLogger(__name__)

#: Called with job, chunk and the time published; sends a pointer to the queue `recovery`.
Republish = Callable[[str, int, float], None]
#: So many messages in `recovery` are enough: every worker reads it first, and other jobs have to have their turn.
FULL_RECOVERY = 1000
_AT_ONCE = 100


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
    table.forget_expired()
    return sum(_reconcile(table, client, storage, republish, job, who, grace_s) for job in table.active())


def _reconcile(
    table: JobTable, client: redis.Redis, storage: Storage, republish: Republish, job: str, who: str, grace_s: float
) -> int:
    found = table.spec(job)
    if found is None:
        table.forget_active(job)
        return 0
    spec, state = found
    if state == "finalizing":
        finalise(table, storage, job, who)
        return 0
    expired = lost = 0
    while _length(client, "recovery") < FULL_RECOVERY:
        # Before the heads are read: what is published after this moment is behind them.
        now = table.roster.now()
        heads = [now, oldest_published_at(client, "recovery"), oldest_published_at(client, spec.queue)]
        oldest = min(head for head in heads if head is not None)
        _, repaired = table.reconcile(job, lost_before=oldest - grace_s, at_most=_AT_ONCE)
        for chunk in repaired.expired + repaired.lost:
            republish(job, chunk, repaired.published_at)
        expired, lost = expired + len(repaired.expired), lost + len(repaired.lost)
        if max(len(repaired.expired), len(repaired.lost)) < _AT_ONCE:
            break
    if expired or lost:
        log.warning(
            "action=republished job=%s %d leases had run out and %d pointers were lost; published again.",
            job,
            expired,
            lost,
        )
    return expired + lost


def _length(client: redis.Redis, queue: str) -> int:
    with suppress(ResponseError):  # somebody put another kind of key in its place: nothing waits there
        return int(client.llen(QUEUE_PREFIX + queue))
    return 0


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
        grace_s: float,
        on_orphaned: Callable[[], None],
    ) -> None:
        super().__init__(name="reconciler", daemon=True)
        self._table, self._client, self._storage, self._republish = table, client, storage, republish
        self._who, self._interval_s, self._on_orphaned = who, interval_s, on_orphaned
        self._grace_s = grace_s
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
        self._table.roster.retire(self._who)

    def _once(self) -> None:
        self._on_orphaned()
        while self._deaths:
            self._bury(self._deaths[0])
            self._deaths.popleft()
        self._table.roster.beat(self._who)
        # The lock is shorter than the interval, so that its holder's death delays nobody by more than one.
        if self._table.roster.lead(self._who, 0.9 * self._interval_s):
            reconcile(
                self._table,
                self._client,
                self._storage,
                self._republish,
                who=self._who,
                grace_s=self._grace_s,
            )

    def _bury(self, death: Death) -> None:
        published_at = self._table.bury(
            death.job, death.chunk, claim_id=death.claim_id, weight=death.weight, marked=death.marked
        )
        if published_at is not None:
            log.warning("action=buried job=%s chunk=%d Its process died; given to others.", death.job, death.chunk)
            self._republish(death.job, death.chunk, published_at)
