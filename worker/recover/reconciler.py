"""Repair what dead processes and lost messages left; the main process of one worker at a time does it for all."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from redis.exceptions import ResponseError

from producer.jobs.model.errors import GradcamError, OtherVersion, ServiceError
from producer.jobs.model.spec import PRIORITIES
from producer.jobs.model.states import JobState
from producer.jobs.store.finalize import finalize

if TYPE_CHECKING:
    from producer.jobs.model.worker_record import WorkerFacts
    from producer.jobs.store.bucket import Storage
    from producer.jobs.table.table import JobTable

log = logging.getLogger(__name__)

#: Sends a pointer to the queue `recovery`; its arguments are job, chunk and the time published.
Republish = Callable[[str, int, float], None]
#: Sends a pointer to a queue; its arguments are queue, job, chunk and the time published.
Publish = Callable[[str, str, int, float], None]
#: How many chunks one call of Redis repairs.
_AT_ONCE = 100
#: For so many intervals a worker that could not repair a job lets others lead.
_OTHERS_LEAD = 3


@dataclass(frozen=True)
class Death:
    """A child process that died with a chunk in flight, as its parent saw it."""

    job: str
    chunk: int
    claim_id: str
    #: How much it speaks against an image that was alone under the mark (`worker/supervise/deaths.py`).
    weight: int
    #: Offsets of the items that the child had marked.
    marked: list[int]
    #: The job's, as `Claim` has it.
    life: str
    #: Whether it was loading the job's model.
    loading: bool = False


def _tell_unreadable(job: str, why: str) -> None:
    log.warning("action=job_unreadable job=%s It is left alone: %s", job, why)


def reconcile(
    table: JobTable,
    storage: Storage,
    republish: Republish,
    *,
    who: str,
    grace_s: float,
    publish: Publish,
    unable: Callable[[str], None] = lambda _: None,
    unreadable: Callable[[str, str], None] = _tell_unreadable,
) -> int:
    """Publish again the chunks that nobody works at, and send lost messages again.

    Args:
        table: The job table.
        storage: Our bucket.
        republish: Sends the pointer of a chunk whose lease ran out to the queue `recovery`.
        who: The name of this worker.
        grace_s: How long messages must be missing before they count as lost.
        publish: Sends a pointer to the queue of its priority.
        unable: Called with each job that could not be repaired here, and may be elsewhere.
        unreadable: Called with each job that no worker of this version can read, and with the reason.

    Returns:
        How many messages were sent.
    """
    for tidy in (
        partial(_forget_misnamed, table),
        table.recovery.forget_expired,
        table.registry.forget_silent,
        table.recovery.restore_active,
    ):
        try:
            tidy()
        except (ResponseError, ServiceError) as error:
            # A key of another type: what it does not concern is looked for all the same.
            log.warning("action=reconcile_failed A part of Redis could not be tidied: %s", error)
    sent = 0
    for job in table.recovery.active():
        try:
            sent += _expired(table, storage, republish, job, who)
        except ServiceError:
            raise
        except OtherVersion as error:
            unreadable(job, str(error))
        except Exception as error:
            # The trouble of one job (its bucket is away, its data is damaged) must not stop those behind it.
            unable(job)
            unforeseen = None if isinstance(error, GradcamError) else error
            log.warning("action=reconcile_failed job=%s It could not be repaired: %s", job, error, exc_info=unforeseen)
    for queue in PRIORITIES:
        while lost := table.recovery.missing_messages(queue, grace_s=grace_s, at_most=_AT_ONCE):
            for job, chunk in lost:
                publish(queue, job, chunk, table.registry.now())
            log.warning("action=republished queue=%s %d messages were lost; they are sent again.", queue, len(lost))
            sent += len(lost)
    return sent


def _forget_misnamed(table: JobTable) -> None:
    if misnamed := table.recovery.forget_misnamed():
        log.warning(
            "action=misnamed_entry %d entries of Redis have names that no job has, such as %r in %s: they are dropped; "
            "somebody else writes to this Redis.",
            misnamed.count,
            misnamed.name,
            misnamed.where,
        )


def _expired(table: JobTable, storage: Storage, republish: Republish, job: str, who: str) -> int:
    state = table.queries.state(job)
    if state is None:
        table.recovery.forget_active(job)
        return 0
    if state == JobState.FINALIZING:
        finalize(table, storage, job, who)
        return 0
    sent = 0
    while True:
        repaired = table.recovery.reconcile(job, at_most=_AT_ONCE)
        if repaired.misnamed:
            log.warning(
                "action=misnamed_entry job=%s %d entries of its chunks have names that no chunk has: they are dropped; "
                "somebody else writes to this Redis.",
                job,
                repaired.misnamed,
            )
        for chunk in repaired.expired:
            republish(job, chunk, repaired.published_at)
        sent += len(repaired.expired)
        if len(repaired.expired) < _AT_ONCE:
            break
    if sent:
        log.warning("action=republished job=%s %d leases ran out; their chunks are published again.", job, sent)
    return sent


class Reconciler(threading.Thread):
    """The thread that registers this worker as alive, and reconciles unless another worker did within the interval.

    Args:
        table: The job table.
        storage: Our bucket.
        republish: As in `reconcile`.
        publish: As in `reconcile`.
        who: The name of this worker.
        queues: The priorities that it reads.
        networks: The networks that are registered here.
        warnings: What this worker's settings leave open.
        interval_s: How often it does all this.
        grace_s: As in `reconcile`.
        before_each: Called first each time; may end the process.
        facts: Gives what this process tells of itself.
        leave: Called when this process or its launcher was asked to finish and leave, with the names that were; says
            whether that is on its way. Until it is, it is called again.
    """

    def __init__(
        self,
        table: JobTable,
        storage: Storage,
        republish: Republish,
        *,
        publish: Publish,
        who: str,
        queues: Sequence[str],
        networks: Sequence[str] = (),
        warnings: Sequence[str] = (),
        interval_s: float,
        grace_s: float,
        before_each: Callable[[], None],
        facts: Callable[[], WorkerFacts] | None = None,
        leave: Callable[[set[str]], bool] = lambda _: True,
    ) -> None:
        super().__init__(name="reconciler", daemon=True)
        self._table, self._storage, self._republish = table, storage, republish
        self._who, self._queues, self._networks, self._warnings = who, queues, networks, warnings
        self._interval_s, self._before_each = interval_s, before_each
        self._facts, self._leave, self._leaves = facts, leave, False
        self._reconcile = partial(reconcile, table, storage, republish, who=who, grace_s=grace_s, publish=publish)
        #: By the monotonic clock; until then other workers lead.
        self._leads_from = 0.0
        #: Jobs that this version cannot read: each is told once, until what is wrong changes.
        self._unreadable: dict[str, str] = {}
        self._deaths: deque[Death] = deque()
        self._wake, self._stopped = threading.Event(), False

    def run(self) -> None:
        """Repeat until stopped; an error, such as a Redis that is away, only delays."""
        while not self._stopped:
            try:
                self._once()
            except Exception as error:
                expected = isinstance(error, GradcamError) or type(error).__module__.startswith(("redis", "kombu"))
                log.warning(
                    "action=reconcile_failed Lost work could not be looked for (%s); trying again.",
                    type(error).__name__,
                    exc_info=None if expected else error,
                )
            self._wake.wait(self._interval_s)
            self._wake.clear()

    def report(self, death: Death) -> None:
        """Reclaim a dead child's chunk now, and not when its lease runs out; another thread calls this."""
        self._deaths.append(death)
        self._wake.set()

    def stop(self) -> None:
        """Stop, and deregister this worker."""
        self._stopped = True
        self._wake.set()
        self.join(timeout=2)
        self._table.registry.deregister(self._who)

    def _once(self) -> None:
        self._before_each()
        while self._deaths:
            self._reclaim(self._deaths[0])
            self._deaths.popleft()
        try:
            self._beat()
        except ServiceError as error:
            # A key of another type: lost work is looked for all the same. A Redis that is away stops what follows, too.
            log.warning("action=reconcile_failed This worker could not say that it is alive: %s", error)
        if time.monotonic() < self._leads_from:
            return
        # The lock is shorter than the interval: the death of its holder delays others by one interval at most.
        if self._table.registry.try_lead(self._who, 0.9 * self._interval_s):
            unable: list[str] = []
            unreadable: dict[str, str] = {}
            self._reconcile(unable=unable.append, unreadable=unreadable.__setitem__)
            for job, why in unreadable.items():
                if self._unreadable.get(job) != why:
                    _tell_unreadable(job, why)
            self._unreadable = unreadable
            if unable:
                # Another worker may be able to; by its clock this one could win the lock each time.
                self._table.registry.step_down(self._who)
                self._leads_from = time.monotonic() + _OTHERS_LEAD * self._interval_s

    def _beat(self) -> None:
        facts = self._facts() if self._facts else None
        self._table.registry.heartbeat(self._who, self._queues, self._networks, self._warnings, facts)
        if facts is None or self._leaves:
            return
        names = [name for name in (self._who, facts.launcher) if name]
        if asked := self._table.registry.asked_to_leave(names):
            self._leaves = self._leave(asked)

    def _reclaim(self, death: Death) -> None:
        try:
            published_at = self._table.reclaim_from_dead(
                death.job,
                death.chunk,
                claim_id=death.claim_id,
                weight=death.weight,
                marked=death.marked,
                life=death.life,
                loading=death.loading,
            )
        except OtherVersion as error:
            _tell_unreadable(death.job, str(error))
            return
        if published_at is not None:
            log.warning("action=reclaimed job=%s chunk=%d Its process died; others get it.", death.job, death.chunk)
            self._republish(death.job, death.chunk, published_at)
        elif death.loading:
            finalize(self._table, self._storage, death.job, self._who)
