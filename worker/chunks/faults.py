"""When a chunk breaks off: whose fault it was, and what follows.

| raised                          | whose fault      | what follows                                               |
|---------------------------------|------------------|------------------------------------------------------------|
| `JobError`                      | the job's        | the job fails (`consumer.py`)                              |
| `NotHere`                       | the job's, here  | we leave the job to others; it fails when no worker can do it |
| `BucketClosed`                  | ours, or the store's | the same; we also say that we cannot work       |
| `OtherVersion`                  | nobody's         | we leave the job to others                                 |
| `DeviceError`, `NoRoom`, others | the job's, perhaps | the job is delayed; it fails after three tries           |
| any other `WorkerError`, Redis  | ours             | we pause, 1 s to 30 s                                      |
"""

from __future__ import annotations

import logging
import socket
import threading
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from producer.jobs.model.errors import (
    BucketClosed,
    DeviceError,
    GradcamError,
    NoRoom,
    NotHere,
    OtherVersion,
    ServiceError,
    UnreadableJob,
)
from producer.jobs.model.redaction import redact_text
from producer.jobs.model.text import shown
from producer.jobs.table.troubles import Kind
from worker import metrics

if TYPE_CHECKING:
    from producer.jobs.store.bucket import Storage
    from producer.jobs.table.claims import Claim
    from producer.jobs.table.table import JobTable
    from worker.chunks.slots import Slots
    from worker.supervise.health import Health

log = logging.getLogger(__name__)

#: How long a worker with a fault of its own waits before it tries again; twice as long each time.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
#: How long a worker reads no messages when everything that waits is left to other workers.
_OTHERS_PAUSE_S = 1.0
#: A process that has tried a job so often makes way for a new one: what is wrong may be the process.
_TRIES_OF_ONE_PROCESS = 2
_LONGEST_SENTENCE = 300
#: So much is read of the text of an error that nobody foresaw: it may quote any input.
_READ_CHARS = 4000


class FaultHandler:
    """Decides what follows from an error; safe to share between threads.

    Args:
        table: The job table, where everybody sees what is wrong.
        storage: Our bucket.
        health: Where `gradcam-worker check` sees it.
        slots: What this process has in flight; a fault may pause or end it.
        worker: This worker's name.
    """

    def __init__(self, table: JobTable, storage: Storage, health: Health, slots: Slots, worker: str) -> None:
        self._table, self._storage, self._health, self._slots, self._worker = table, storage, health, slots, worker
        self._host = socket.gethostname()
        self._lock = threading.Lock()
        self._pause_s = _FIRST_PAUSE_S
        self._faulty = False
        #: Whether our own bucket was closed to us when it was last used.
        self._bucket_closed = False
        #: Job → how often this very process met an error that nobody foresaw.
        self._tried: Counter[str] = Counter()

    # -- whose fault ---------------------------------------------------------------------------------------------

    def check_bucket(self) -> None:
        """Look whether a bucket that was closed to us still is, before anything is computed in vain.

        Raises:
            BucketClosed: It is.
        """
        if self._bucket_closed:
            self._storage.accepts_writes()
            self._bucket_closed = False

    def chunk_broke_off(self, claim: Claim, error: Exception) -> None:
        """Take note of what broke off a chunk, before the chunk is given back.

        Args:
            claim: The chunk.
            error: Neither a lost lease nor what every worker would say of the job.
        """
        if isinstance(error, NotHere):
            self.leave_to_others(claim.job, error, claim)
        elif isinstance(error, DeviceError | NoRoom) or not isinstance(error, GradcamError):
            self._unforeseen(claim, error)
        else:
            self.own_fault(claim.job, claim.chunk, error)

    def leave_to_others(self, job: str, error: NotHere, claim: Claim | None = None) -> None:
        """Leave a job to others that this worker cannot do. Where no worker can, the job fails.

        It says nothing of this worker, which is as good as before for other jobs, unless our bucket is closed to it.
        """
        log.warning("action=job_refused job=%s This worker cannot do it: %s", job, error)
        kind = Kind.VERSION if isinstance(error, OtherVersion) else Kind.REFUSED
        with suppress(UnreadableJob):  # then no message leads to it
            self._table.troubles.tell(self._worker, self._host, job, kind, str(error), claim)
        if isinstance(error, BucketClosed):
            # No other job can be done here either: each is looked at once, and nothing is computed for it.
            self._bucket_closed = True
            self._report(str(error))

    def _unforeseen(self, claim: Claim, error: Exception) -> None:
        """Blame the job after a few tries on different processes. Until then it is delayed."""
        sentence = _sentence(error)
        log.error("action=job_error job=%s chunk=%d %s", claim.job, claim.chunk, sentence, exc_info=error)
        with suppress(UnreadableJob):
            self._table.troubles.tell(self._worker, self._host, claim.job, Kind.ERROR, sentence, claim)
        if isinstance(error, DeviceError):
            self._report(sentence)
        with self._lock:
            self._tried[claim.job] += 1
            tries = self._tried[claim.job]
        if isinstance(error, DeviceError):
            self._slots.retire("The device failed")
        elif tries >= _TRIES_OF_ONE_PROCESS:
            self._slots.wear_out(f"Job {claim.job} failed here {tries} times for no reason that we know")

    def own_fault(self, job: str, chunk: int, error: Exception) -> None:
        """Say what is wrong with this worker, and leave the work to others for a while."""
        if isinstance(error, GradcamError):
            log.error("action=worker_fault job=%s chunk=%d This worker cannot work: %s", job, chunk, error)
            self._report(str(error))
        else:
            # It may be everywhere: go on slowly.
            log.error("action=bug job=%s chunk=%d Something unexpected went wrong.", job, chunk, exc_info=error)
            self._report(f"a bug of gradcam-queue ({type(error).__name__}); its log has more")
        self._pause()
        if isinstance(error, DeviceError):
            self._slots.retire("The device failed")

    def only_for_others(self) -> None:
        """Read no messages for a moment: all that wait are for other workers."""
        self._slots.pause(_OTHERS_PAUSE_S)

    def _report(self, sentence: str) -> None:
        self._faulty = True
        self._health.fault(sentence)
        with suppress(ServiceError):
            self._table.registry.report_problem(self._worker, sentence)

    def _pause(self) -> None:
        with self._lock:
            # Chunks in flight at the same time may tell of one fault.
            if self._slots.paused():
                return
            metrics.worker_fault()
            self._slots.pause(self._pause_s)
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    # -- nobody's any more ---------------------------------------------------------------------------------------

    def model_loaded(self, claim: Claim) -> None:
        """Take note that a claim's model can be loaded."""
        if claim.load_suspect:
            self._table.troubles.loaded(claim.job)

    def went_well(self, claim: Claim) -> None:
        """Take note of a chunk that came to its end."""
        with self._lock:
            had_fault, self._faulty, self._pause_s = self._faulty, False, _FIRST_PAUSE_S
            tried = self._tried.pop(claim.job, 0)
        if had_fault:
            self._health.recovered()
            self._table.registry.recovered(self._worker)
        if claim.troubled or tried:
            self._table.troubles.over(claim.job, self._worker)


def _sentence(error: Exception) -> str:
    """What failed, as everybody may see it: without a traceback, and without what looks like a secret."""
    if isinstance(error, GradcamError):
        return str(error)
    first = next(iter(str(error)[:_READ_CHARS].strip().splitlines()), "")
    words = shown(redact_text(" ".join(first.split())), _LONGEST_SENTENCE)
    return f"it meets an error that gradcam-queue does not know: {type(error).__name__}: {words}".rstrip(": ")
