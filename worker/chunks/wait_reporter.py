"""Report what a process does, and what it waits for: a server that stands still raises no error that could be told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from producer.jobs.model.errors import ServiceError
from producer.jobs.model.waits import SERVER_AFTER_S, longest

if TYPE_CHECKING:
    from producer.jobs.table.workers import WorkerRegistry
    from worker.supervise.health import Health

_LOOK_EVERY_S: Final = 5.0


class WaitReporter(threading.Thread):
    """Tells `status` and `check` what this process has waited for longer than usual, and its parent what it does.

    Args:
        registry: Where `gradcam status` finds it.
        name: The worker's.
        health: Where `gradcam-worker check` finds it, servers only: a step of one's own may take its time.
        work: Gives what the process does, for its parent's sign of life.
    """

    def __init__(self, registry: WorkerRegistry, name: str, health: Health, work: Callable[[], str]) -> None:
        super().__init__(name="wait-reporter", daemon=True)
        self._registry, self._worker, self._health = registry, name, health
        self._work = work
        self._told = False
        self._over = threading.Event()

    def run(self) -> None:
        """Look again and again."""
        while not self._over.wait(_LOOK_EVERY_S):
            self.look()

    def stop(self) -> None:
        """Say nothing more."""
        self._over.set()
        self.join()

    def look(self) -> None:
        """Tell what is waited for now, or take back what was told."""
        self._health.tell_work(self._work())
        found = longest()
        long = found is not None and found.age_s >= SERVER_AFTER_S
        # First: Redis may be what does not answer.
        if found is not None and long and found.server:
            self._health.waits(found.what, found.age_s)
        else:
            self._health.waits_no_more()
        with suppress(ServiceError):
            if found is not None and long:
                self._registry.waits_for(self._worker, found.what, found.age_s)
                self._told = True
            elif self._told:
                self._registry.waits_no_more(self._worker)
                self._told = False
