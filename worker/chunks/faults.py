"""Whose fault it was that a chunk broke off, and what this worker does about it.

| what is raised                   | what follows                                                                |
|----------------------------------|-----------------------------------------------------------------------------|
| `JobError`                       | the job fails (`work.py`)                                                   |
| `NotHere`: this worker lacks it  | it leaves the job alone; the job fails when no worker that is alive can do it |
| `DeviceError`, `NoRoom`, anything that nobody foresaw | the job is put off; it fails after three tries         |
| `OtherVersion`                   | it leaves the job alone                                                     |
| any other `WorkerError`, Redis   | its own fault: it pauses, 1 s to 30 s                                       |
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from producer.jobs.fetch import addresses
from producer.jobs.model.errors import (
    BucketClosed,
    DeviceError,
    GradcamError,
    NoRoom,
    NotHere,
    OtherVersion,
    ServiceError,
)
from producer.jobs.table.troubles import Kind

if TYPE_CHECKING:
    from producer.jobs.store.bucket import Storage
    from producer.jobs.table.claims import Claim
    from producer.jobs.table.table import JobTable
    from worker.supervise.health import Health

log = logging.getLogger(__name__)

#: A worker with a fault of its own waits this long before it tries again, twice as long each time.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
#: How long a worker reads no messages when all that waits are jobs that it leaves alone.
_LEFT_ALONE_PAUSE_S = 1.0
#: A process that has tried a job so often makes way for a new one: what is wrong may be the process.
_TRIES_OF_ONE_PROCESS = 2
_LONGEST_SENTENCE = 300


class FaultHandler:
    """What a worker process knows of its own faults and of jobs that it cannot do; safe to share between threads."""

    def __init__(self, table: JobTable, storage: Storage, health: Health, worker: str) -> None:
        self._table, self._storage, self._health, self._worker = table, storage, health, worker
        self._host = socket.gethostname()
        self._lock = threading.Lock()
        self._pause_s, self._paused_until = _FIRST_PAUSE_S, 0.0
        self._faulty = False
        #: Whether our own bucket was closed to us when it was last used.
        self._bucket_closed = False
        #: Job → how often this very process met an error that nobody foresaw.
        self._tried: Counter[str] = Counter()
        #: Why this process makes way for a new one: at once, or when it has done what is in hand.
        self.retires: str | None = None
        self.worn_out: str | None = None

    @property
    def paused(self) -> bool:
        """Whether nothing is to be begun now."""
        return time.monotonic() < self._paused_until

    # -- whose fault ---------------------------------------------------------------------------------------------

    def check_bucket(self) -> None:
        """Before anything is computed in vain: look whether a bucket that was closed to us still is.

        Raises:
            BucketClosed: It is.
        """
        if self._bucket_closed:
            self._storage.accepts_writes()
            self._bucket_closed = False

    def chunk(self, claim: Claim, error: Exception) -> None:
        """Take note of what broke off a chunk in hand, before it is given back.

        Args:
            claim: The chunk.
            error: Neither a lost lease nor what every worker would say of the job.
        """
        if isinstance(error, NotHere):
            self.job(claim.job, error, claim)
        elif isinstance(error, DeviceError | NoRoom) or not isinstance(error, GradcamError):
            self._unforeseen(claim, error)
        else:
            self.own(claim.job, claim.chunk, error)

    def job(self, job: str, error: NotHere, claim: Claim | None = None) -> None:
        """Leave a job alone that this worker cannot do; where no worker can, it fails."""
        log.warning("action=left_alone job=%s This worker cannot do it: %s", job, error)
        kind = Kind.VERSION if isinstance(error, OtherVersion) else Kind.REFUSED
        self._table.troubles.tell(self._worker, self._host, job, kind, str(error), claim)
        # No other job can be done here either: each is looked at once, and nothing is computed for it.
        self._bucket_closed = self._bucket_closed or isinstance(error, BucketClosed)
        if kind is Kind.REFUSED:
            self._say(str(error))

    def _unforeseen(self, claim: Claim, error: Exception) -> None:
        """Blame the job for it after a few tries, on different processes; meanwhile it is put off."""
        sentence = _sentence(error)
        log.error("action=job_error job=%s chunk=%d %s", claim.job, claim.chunk, sentence, exc_info=error)
        self._table.troubles.tell(self._worker, self._host, claim.job, Kind.ERROR, sentence, claim)
        if isinstance(error, DeviceError):
            self._say(sentence)
        with self._lock:
            self._tried[claim.job] += 1
            if isinstance(error, DeviceError):
                self.retires = "The device failed"
            elif self._tried[claim.job] >= _TRIES_OF_ONE_PROCESS:
                self.worn_out = f"Job {claim.job} failed here {_TRIES_OF_ONE_PROCESS} times for no reason that we know"

    def own(self, job: str, chunk: int, error: Exception) -> None:
        """Say what is wrong with this worker, and leave the work to others for a while."""
        if isinstance(error, GradcamError):
            log.error("action=worker_fault job=%s chunk=%d This worker cannot work: %s", job, chunk, error)
            self._say(str(error))
        else:
            # It may be everywhere: go on slowly.
            log.error("action=bug job=%s chunk=%d Something unexpected went wrong.", job, chunk, exc_info=error)
            self._say(f"a bug of gradcam-queue ({type(error).__name__}); its log has more")
        self._pause(grows=True)
        if isinstance(error, DeviceError):
            self.retires = "The device failed"

    def nothing_but_left_alone(self) -> None:
        """Read no messages for a moment: those there are are for others."""
        self._pause(grows=False)

    def _say(self, sentence: str) -> None:
        self._faulty = True
        self._health.fault(sentence)
        with suppress(ServiceError):
            self._table.registry.report_problem(self._worker, sentence)

    def _pause(self, *, grows: bool) -> None:
        with self._lock:
            now = time.monotonic()
            if not grows:
                self._paused_until = max(self._paused_until, now + _LEFT_ALONE_PAUSE_S)
            # Both chunks in hand may tell of one fault.
            elif now >= self._paused_until:
                self._paused_until = now + self._pause_s
                self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    # -- nobody's any more ---------------------------------------------------------------------------------------

    def loaded(self, claim: Claim) -> None:
        """Take note that a claim's model can be loaded."""
        if claim.load_suspect:
            self._table.troubles.loaded(claim.job)

    def well(self, claim: Claim) -> None:
        """Take note of a chunk that came to its end."""
        with self._lock:
            had_fault, self._faulty, self._pause_s = self._faulty, False, _FIRST_PAUSE_S
            troubled = claim.troubled or self._tried.pop(claim.job, 0) > 0
        if had_fault:
            self._health.recovered()
            self._table.registry.recovered(self._worker)
        if troubled:
            self._table.troubles.over(claim.job, self._worker)


def _sentence(error: Exception) -> str:
    """What failed, as everybody may see it: without a traceback, and without what looks like a secret."""
    if isinstance(error, GradcamError):
        return str(error)
    first = next(iter(str(error).strip().splitlines()), "")
    shown = " ".join(addresses.redact(word) for word in first.split())[:_LONGEST_SENTENCE]
    return f"it meets an error that gradcam-queue does not know: {type(error).__name__}: {shown}".rstrip(": ")
