"""The ends of a chunk's items on their way into manifest and job table: objects first, then manifest, then commit."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from producer.jobs import keys
from producer.jobs.errors import GradcamError, StoreError, WorkerError
from producer.jobs.spec import Failure, Result

if TYPE_CHECKING:
    from producer.jobs.storage import Storage
    from producer.jobs.table import Claim, Committed, JobTable
    from worker.settings import WorkerSettings

log = logging.getLogger(__name__)


class LeaseLost(GradcamError):
    """The chunk is not ours any more."""


@dataclass(frozen=True)
class Ended:
    """An item's end, to be recorded."""

    offset: int
    result: Result
    failure: Failure | None


class Ledger:
    """Ends of one chunk's items on their way into manifest and job table; keeps the lease while there is progress."""

    def __init__(self, table: JobTable, storage: Storage, claim: Claim, settings: WorkerSettings) -> None:
        self._table, self._storage, self._claim, self._settings = table, storage, claim, settings
        self._underway: list[Future[Ended]] = []
        self._ended: list[Ended] = []
        self._part = 0
        self._renewed = self._committed = time.monotonic()
        self.complete = False

    def add(self, future: Future[Ended]) -> None:
        """Take note of an item that is being finished."""
        self._underway.append(future)

    def harvest(self, *, leave: int) -> None:
        """Take in what has ended, waiting until at most `leave` are under way."""
        while self._underway and (len(self._underway) > leave or self._underway[0].done()):
            self._ended.append(self._underway.pop(0).result())
            self.keep()
        if time.monotonic() - self._committed >= self._settings.commit_every_s:
            self.commit()

    def keep(self) -> None:
        """Renew the lease, after progress, not more often than needed.

        Raises:
            LeaseLost: It is not ours any more.
        """
        if time.monotonic() - self._renewed < self._settings.lease_s / 4:
            return
        self._renewed = time.monotonic()
        if not self._table.renew(self._claim, lease_s=self._settings.lease_s):
            raise LeaseLost

    def commit(self) -> None:
        """Record what has ended: the manifest first, then the bits."""
        self._committed = time.monotonic()
        ended, self._ended = self._ended, []
        if not ended:
            return
        claim = self._claim
        key = keys.manifest(self._storage.prefix, claim.job, claim.chunk, claim.token, self._part)
        self._part += 1
        lines = (end.result.model_dump_json(exclude_none=True) for end in ended)
        try:
            self._storage.put(key, "\n".join(lines).encode())
        except StoreError as error:
            # No image's fault: without its manifest nothing of this part counts, another worker may do better.
            raise WorkerError(str(error)) from None
        done = [end.offset for end in ended if end.failure is None]
        failed = [end.failure for end in ended if end.failure is not None]
        committed = self._table.commit(claim, done=done, failed=failed, lease_s=self._settings.lease_s)
        self._note(committed)

    def _note(self, committed: Committed | None) -> None:
        if committed is None:
            raise LeaseLost
        self.complete = committed.complete
        log.info(
            "action=committed job=%s chunk=%d %d images done, %d failed.",
            self._claim.job,
            self._claim.chunk,
            committed.done,
            committed.failed,
        )
