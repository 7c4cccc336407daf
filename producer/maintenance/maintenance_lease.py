"""The exclusive lease of a job that a client repairs or deletes: nobody else changes the job meanwhile."""

from __future__ import annotations

import threading
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from producer.jobs.model.errors import GradcamError, ServiceError, UsageError
from producer.jobs.table.user_actions import MAINTENANCE_LEASE_S

if TYPE_CHECKING:
    from producer.jobs.model.states import JobState
    from producer.jobs.table.table import JobTable


class MaintenanceLease:
    """The exclusive lease of a job that has ended, for one `with`; a thread of its own renews it.

    Args:
        table: The job table.
        job: Its id.
        state: `REPAIRING` or `DELETING`.
        lease_s: How long this client may be silent before another may go on.

    Raises:
        UnknownJob: On entering: there is no such job.
        UsageError: On entering: it has not ended, or another client has it.
    """

    def __init__(self, table: JobTable, job: str, state: JobState, *, lease_s: float = MAINTENANCE_LEASE_S) -> None:
        self._table, self._job, self._state, self._lease_s = table, job, state, lease_s
        self.who = f"client-{uuid.uuid4().hex}"
        #: Objects of the job may be gone: the job must not look complete afterwards.
        self.incomplete = False
        self._life: str | None = None
        self._over = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="maintenance", daemon=True)

    def __enter__(self) -> Self:
        self._renew()
        self._keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._keeper.join()
        with suppress(ServiceError):  # the reconciler finds a client that has gone
            self._table.actions.maintained(self._job, self.who, incomplete=self.incomplete)

    def check(self) -> None:
        """Make sure that we still have the lease; call it before each step that cannot be undone.

        Raises:
            UsageError: Another client has the lease, or it is another job: Redis was wiped, or it was submitted again.
            ServiceError: Redis is away.
        """
        self._renew()

    def _renew(self) -> None:
        life = self._table.actions.maintain(self._job, self._state, self.who, lease_s=self._lease_s)
        if self._life is None:
            self._life = life
        elif life != self._life:
            self._table.actions.maintained(self._job, self.who)
            raise UsageError(f"job {self._job} was deleted and submitted again meanwhile: do it again")

    def _keep(self) -> None:
        while not self._over.wait(self._lease_s / 6):
            with suppress(GradcamError):  # `check` tells it
                self._renew()
