"""The lease of a claimed chunk, and how long its present step may take before the process counts as hanging."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from producer.jobs.model.errors import Interrupted, ServiceError, UnreadableJob
from worker.supervise.busy_file import Busy, BusyFile

if TYPE_CHECKING:
    from producer.jobs.table.claims import Claim
    from producer.jobs.table.table import JobTable

log = logging.getLogger(__name__)
#: How often `look` asks Redis.
_LOOK_EVERY_S: Final = 1.0
#: The share of a step's time by which its deadline may be told too early.
_NO_MATTER: Final = 0.01


class LeaseLost(Interrupted):
    """The chunk is not ours any more."""


class Lease:
    """Keeps a claimed chunk ours while each step is within its time; used in a `with`, by the thread that works.

    A thread of its own renews the lease, since one step (loading a model, one batch on a slow processor) may take
    longer than a lease. A dead or frozen process renews nothing; one that hangs renews until the step's time is over.
    `busy_file` says all this to the parent process, which kills a child that hangs (`worker/recover/watchdog.py`).

    Args:
        table: The job table.
        claim: The chunk.
        claim_id: What it was claimed with.
        lease_s: How long the chunk stays ours when this process dies.
        busy_file: Exists while the chunk is in flight; its time is the deadline of the present step.
    """

    def __init__(
        self, table: JobTable, claim: Claim, *, claim_id: str, lease_s: float, busy_file: Path | None = None
    ) -> None:
        self._table, self._claim, self._claim_id, self._lease_s = table, claim, claim_id, lease_s
        self._file = None if busy_file is None else BusyFile(busy_file)
        #: Guards the deadlines and the file: several threads begin and end steps.
        self._lock = threading.Lock()
        self._step_until = time.monotonic() + lease_s
        #: While batches with images of the chunk are on the device, their deadlines count, whatever else goes on.
        self._batches_until: list[float] = []
        #: The deadline that the file has.
        self._told_deadline = 0.0
        self._closed = False
        #: When the renewal that was answered last was asked for.
        self._renewed = time.monotonic()
        self._lost = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._tell(())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        # First: a renewal that waits for Redis is no hanging image. The next chunk in this place has the same file.
        with self._lock:
            self._closed = True
            if self._file is not None:
                self._file.remove()
        self._thread.join()

    def step(self, limit_s: float) -> None:
        """Begin a step that may take so long.

        Raises:
            LeaseLost: The chunk is not ours any more, or the job goes no further.
        """
        if self._lost:
            raise LeaseLost
        with self._lock:
            self._step_until = time.monotonic() + limit_s
            self._set_time()

    @contextmanager
    def batch(self, limit_s: float) -> Iterator[None]:
        """Take note that a batch with images of the chunk is on the device, for so long at most.

        Its deadline counts meanwhile: a device that hangs must not be hidden by uploads that go on. Afterwards that of
        the chunk's own step counts again: an outage of the store is not taken for a batch that hangs.

        Raises:
            LeaseLost: As `step`.
        """
        if self._lost:
            raise LeaseLost
        until = time.monotonic() + limit_s
        with self._lock:
            self._batches_until.append(until)
            self._set_time()
        try:
            yield
        finally:
            with self._lock:
                self._batches_until.remove(until)
                self._set_time()

    def hold(self) -> None:
        """Make sure that the chunk is ours before something is written that is its holder's alone to write.

        Costs a look at the clock, unless the last renewal was longer ago than a lease lasts: then Redis is asked.

        Raises:
            LeaseLost: As `step`.
            ServiceError: Redis is away: nobody knows whose the chunk is.
        """
        if not self._lost and time.monotonic() - self._renewed >= self._lease_s:
            self._renew(None)
        if self._lost:
            raise LeaseLost

    def mark(self, offsets: Sequence[int]) -> None:
        """Say which items are about to be decoded or computed: they come under suspicion if this process dies now.

        Raises:
            LeaseLost: As `step`; known at once, so that a job which is cancelled or paused stops here.
        """
        self._tell(offsets)
        self._renew(offsets)
        if self._lost:
            raise LeaseLost

    def fetch(self, limit_s: float) -> None:
        """Begin to fetch the weights of the job's model, which may take so long, and ends no process.

        Raises:
            LeaseLost: As `step`.
        """
        self.step(limit_s)
        self._tell((), fetching=True)

    def look(self) -> None:
        """Look whether the chunk is still ours, within a step: a job may be cancelled or paused meanwhile.

        Costs a look at the clock, but once a second.

        Raises:
            LeaseLost: As `mark`.
        """
        if not self._lost and time.monotonic() - self._renewed >= _LOOK_EVERY_S:
            with suppress(ServiceError):
                self._renew(None)
        if self._lost:
            raise LeaseLost

    def load(self, limit_s: float) -> None:
        """Begin to load the job's model, which may take so long: that comes under suspicion if this process dies now.

        Raises:
            LeaseLost: As `mark`.
        """
        self.step(limit_s)
        self._tell((), loading=True)
        self._renew(None, loading=True)
        if self._lost:
            raise LeaseLost

    def _tell(self, marked: Sequence[int], *, loading: bool = False, fetching: bool = False) -> None:
        """Tell the parent what is in flight; it may be the only one left to know."""
        if self._file is None:
            return
        claim = self._claim
        busy = Busy(os.getpid(), claim.job, claim.chunk, self._claim_id, claim.life, list(marked), loading, fetching)
        with self._lock:
            if not self._closed:
                self._file.write(busy)
                self._told_deadline = 0.0  # a new file has none
                self._set_time()

    def _deadline(self) -> float:
        return min(self._batches_until, default=self._step_until)

    def _set_time(self) -> None:
        if self._file is None or self._closed:
            return
        deadline, now = self._deadline(), time.monotonic()
        # Each image renews its chunk's step: a deadline that moves by a hundredth is not worth a call of the system.
        if not 0 <= deadline - self._told_deadline < _NO_MATTER * (deadline - now):
            self._told_deadline = deadline
            self._file.set_deadline(max(deadline - now, 0.0))

    def _keep(self) -> None:
        while not self._over.wait(self._lease_s / 8):
            due = time.monotonic() - self._renewed >= self._lease_s / 3
            if due and not self._lost and time.monotonic() < self._deadline():
                # Redis is away: it hands out our chunk no more than it renews it.
                with suppress(ServiceError):
                    self._renew(None)

    def _renew(self, offsets: Sequence[int] | None, *, loading: bool = False) -> None:
        asked = time.monotonic()
        try:
            ours = self._table.renew(self._claim, lease_s=self._lease_s, marked=offsets, loading=loading)
        except UnreadableJob:
            ours = False  # somebody wrote into the job meanwhile: it goes no further
        if not ours:
            self._lost = True
        self._renewed = asked
